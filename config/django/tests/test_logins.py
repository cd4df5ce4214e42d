"""Whatever way a login fails, one safe line with the right address is written."""

import base64
import re

import pytest
from django.test import AsyncClient

from conftest import filter_samples

LINE = re.compile(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING django\.auth login failed ip=(\S+) user="((?:[^"\\]|\\.)*)"\n')


def lines(log):
    """What was written, as (address, user) pairs; anything that is no safe line fails."""
    text = log.read_bytes().decode("ascii")
    found = []
    for line in text.splitlines(keepends=True):
        match = LINE.fullmatch(line)
        assert match, line
        found.append(match.groups())
    return found


def fail(client, **extra):
    return client.post("/login/", {"username": "bob", "password": "wrong"}, **extra)


def test_the_login_page(client, log):
    assert fail(client, REMOTE_ADDR="203.0.113.9").status_code == 200
    assert lines(log) == [("203.0.113.9", "bob")]


def test_the_admin(client, log):
    client.post("/admin/login/", {"username": "root", "password": "wrong"}, REMOTE_ADDR="2001:db8::9")
    assert lines(log) == [("2001:db8::9", "root")]


def test_authenticate_without_a_request_inside_one(client, log):
    client.get("/bare/", {"u": "bob"}, REMOTE_ADDR="203.0.113.9")
    assert lines(log) == [("203.0.113.9", "bob")]


def test_authenticate_outside_of_requests_blames_nobody(log):
    from django.contrib.auth import authenticate

    authenticate(username="bob", password="wrong")
    assert lines(log) == [("-", "bob")]


def test_the_request_before_is_not_blamed(client, log):
    from django.contrib.auth import authenticate

    client.get("/bare/", {"u": "bob"}, REMOTE_ADDR="203.0.113.9")
    authenticate(username="later", password="wrong")
    assert lines(log) == [("203.0.113.9", "bob"), ("-", "later")]


def test_an_async_view(log):
    import asyncio

    async def ask():
        for path in ("/bare-async/", "/bare/"):
            await AsyncClient().get(path, {"u": "bob"})

    asyncio.run(ask())
    assert lines(log) == [("127.0.0.1", "bob")] * 2


def test_rest_framework_basic_authentication(client, log):
    pytest.importorskip("rest_framework")
    header = "Basic " + base64.b64encode(b"bob:wrong").decode()
    assert client.get("/api/", HTTP_AUTHORIZATION=header, REMOTE_ADDR="203.0.113.9").status_code == 401
    assert lines(log) == [("203.0.113.9", "bob")]


def test_a_login_that_succeeds_writes_nothing(client, log):
    from django.contrib.auth import get_user_model

    get_user_model().objects.create_user("good", password="right")
    response = client.post("/login/?next=/", {"username": "good", "password": "right"}, REMOTE_ADDR="203.0.113.9")
    assert response.status_code == 302
    assert not log.exists()


@pytest.mark.parametrize("sample", [s for s in filter_samples() if "user" in s], ids=lambda s: repr(s["user"])[:40])
def test_lines_are_what_blockers_filter_is_tested_with(sample):
    import datetime

    from django_blocker.line import compose

    at = datetime.datetime(2026, 11, 24, 2, 47, 40, 414000)
    assert compose(at, sample["host"], sample["user"]) == sample["line"] + "\n"


@pytest.mark.parametrize("code", [*range(0x00, 0x21), 0x22, 0x5C, 0x7F, 0x85, 0xA0, 0x2028, 0x2029, 0xFEFF, 0x1F600])
def test_no_character_of_a_name_can_break_a_line(client, log, code):
    name = f"a{chr(code)}b"
    client.post("/login/", {"username": name, "password": "wrong"}, REMOTE_ADDR="203.0.113.9")
    client.get("/bare/", {"u": name}, REMOTE_ADDR="203.0.113.9")
    assert {address for address, _ in lines(log)} == {"203.0.113.9"}


def test_a_long_name_is_cut(client, log):
    client.get("/bare/", {"u": "a" * 10_000}, REMOTE_ADDR="203.0.113.9")
    assert lines(log) == [("203.0.113.9", "a" * 128)]


def test_the_password_is_nowhere(client, log):
    client.post("/login/", {"username": "bob", "password": "hunter2secret"}, REMOTE_ADDR="203.0.113.9")
    assert b"hunter2secret" not in log.read_bytes()
