"""Lines arrive whole, through rotation and from many processes, and a login never waits or fails for them."""

import multiprocessing
import os
import socket
import stat
import subprocess
import time

import pytest

from django_blocker import sink


def write(text="x"):
    sink.write(f"{text}\n")


def test_the_file_and_its_folder_are_made_with_sane_permissions(settings_with, tmp_path):
    path = tmp_path / "new" / "auth.log"
    settings_with(BLOCKER_LOG=str(path))
    write()
    assert stat.S_IMODE(path.stat().st_mode) & 0o137 == 0, oct(path.stat().st_mode)
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o027 == 0


def test_rotation_by_renaming(log):
    for number in range(10):
        write(f"a{number}")
        log.rename(log.with_name(f"auth.log.{number}"))
        write(f"b{number}")
    kept = [log, *log.parent.glob("auth.log.*")]
    text = "".join(path.read_text() for path in kept)
    assert sorted(text.split()) == sorted([f"a{n}" for n in range(10)] + [f"b{n}" for n in range(10)])


def test_rotation_by_truncating(log):
    write("before")
    os.truncate(log, 0)
    write("after")
    assert log.read_text() == "after\n"


def test_a_deleted_file_is_made_anew(log):
    write("before")
    log.unlink()
    write("after")
    assert log.read_text() == "after\n"


def _many(path, name):
    from django.test import override_settings

    with override_settings(BLOCKER_LOG=path):
        for number in range(500):
            write(f"{name}-{number}-" + "x" * 200)


def test_lines_of_many_processes_do_not_mix(log):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_many, args=(str(log), name)) for name in "abcd"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = log.read_text().splitlines()
    assert sorted(lines) == sorted(f"{name}-{n}-" + "x" * 200 for name in "abcd" for n in range(500))


@pytest.mark.parametrize("what", ["link", "folder", "fifo", "missing folder that cannot be made"])
def test_what_is_no_file_of_ours_is_refused_and_said_once(settings_with, tmp_path, caplog, what):
    path = tmp_path / "odd"
    if what == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "folder":
        path.mkdir()
    elif what == "fifo":
        subprocess.run(["mkfifo", path], check=True)
    else:
        (tmp_path / "plain").write_text("")
        path = tmp_path / "plain" / "auth.log"
    settings_with(BLOCKER_LOG=str(path))
    before = sink.lost["file"]
    for _ in range(3):
        write()
    assert sink.lost["file"] == before + 3
    assert len([record for record in caplog.records if str(path) in record.getMessage()]) == 1
    assert not (tmp_path / "elsewhere").exists()


def test_the_agents_socket(settings_with, tmp_path, log):
    path = str(tmp_path / "lines.sock")
    settings_with(BLOCKER_SOCKET=path)
    # Nobody listens yet: the file takes the line.
    write("to the file")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.bind(path)
        write("to the agent")
        assert agent.recv(100) == b"to the agent\n"
    os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.bind(path)
        write("to the restarted agent")
        assert agent.recv(100) == b"to the restarted agent\n"
    assert log.read_text() == "to the file\n"


def test_an_agent_that_does_not_keep_up_holds_nobody_up(settings_with, tmp_path):
    path = str(tmp_path / "lines.sock")
    settings_with(BLOCKER_SOCKET=path, BLOCKER_LOG=None)
    before = sink.lost["socket"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.bind(path)
        begun = time.monotonic()
        for _ in range(5_000):
            write("x" * 1_000)
        assert time.monotonic() - begun < 10
        agent.setblocking(False)
        taken = 0
        while True:
            try:
                agent.recv(2_000)
            except BlockingIOError:
                break
            taken += 1
    # Every line is either with the agent or counted.
    assert taken and sink.lost["socket"] == before + 5_000 - taken


def test_what_the_agent_does_not_take_goes_to_the_file(settings_with, tmp_path, log):
    path = str(tmp_path / "lines.sock")
    settings_with(BLOCKER_SOCKET=path)
    before = dict(sink.lost)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent:
        agent.bind(path)
        while sink.lost["socket"] == before["socket"]:
            write("x")
        write("one more")
    lost = sink.lost["socket"] - before["socket"]
    assert log.read_text().split() == ["x"] * (lost - 1) + ["one", "more"]
    assert sink.lost["file"] == before["file"]
