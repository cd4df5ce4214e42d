"""Where lines go: the agent's socket, or a file that is opened anew whenever the path leads elsewhere.

Nothing here may hinder a login: whatever fails is counted, said once through the logger `django_blocker`, and left.
"""

import errno
import logging
import os
import socket
import stat
import threading

from . import conf

logger = logging.getLogger("django_blocker")

_lock = threading.Lock()
_open = {"path": None, "fd": None, "identity": None}
_socket = {"path": None, "socket": None}
_said = set()

# How many lines went nowhere, by reason; for tests and for whoever exports metrics.
lost = {"file": 0, "socket": 0}


def write(line):
    """Writes one line to where the settings say."""
    data = line.encode("ascii")
    path = conf.get("BLOCKER_SOCKET")
    if path and _send(path, data):
        return
    path = conf.get("BLOCKER_LOG")
    if path:
        _append(os.fspath(path), data)


def _send(path, data):
    """Hands the line to the agent without waiting for it; false when it is not there or does not keep up."""
    try:
        with _lock:
            if _socket["path"] != path or _socket["socket"] is None:
                _close_socket()
                fresh = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
                _socket.update(path=path, socket=fresh)
            # By name each time: an agent that was restarted has another socket there.
            _socket["socket"].sendto(data, path)
        return True
    except OSError as error:
        lost["socket"] += 1
        _say_once(f"socket {path}", "the agent's socket %s takes no lines: %s", path, error)
        return False


def _append(path, data):
    try:
        with _lock:
            fd = _file(path)
            # One write with O_APPEND: lines of several processes do not mix.
            os.write(fd, data)
    except OSError as error:
        lost["file"] += 1
        _say_once(f"log {path}", "a failed login was not written to %s: %s", path, error)


def _file(path):
    """The open file, opened anew when it was rotated away."""
    try:
        found = os.lstat(path)
        identity = (found.st_dev, found.st_ino)
    except FileNotFoundError:
        identity = None
    if _open["fd"] is not None and (_open["path"], _open["identity"]) == (path, identity):
        return _open["fd"]
    _close_file()
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        os.makedirs(folder, mode=0o750, exist_ok=True)
    # No link is followed, since whoever can make one would choose the file; a FIFO does not make us wait.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags, 0o640)
    opened = os.fstat(fd)
    if not stat.S_ISREG(opened.st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    _open.update(path=path, fd=fd, identity=(opened.st_dev, opened.st_ino))
    return fd


def _close_file():
    if _open["fd"] is not None:
        os.close(_open["fd"])
    _open.update(path=None, fd=None, identity=None)


def _close_socket():
    if _socket["socket"] is not None:
        _socket["socket"].close()
    _socket.update(path=None, socket=None)


def _after_fork():
    """A child must not wait for a lock that a thread of its parent held; descriptors are shared safely."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _say_once(key, message, *args):
    if key not in _said:
        _said.add(key)
        logger.error(message + "; this is said once", *args)
