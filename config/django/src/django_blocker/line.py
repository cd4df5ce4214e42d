"""The line, byte for byte as blocker's filter `django` reads it."""

import datetime
import json

# Longer names are cut: no login needs them, and a line stays one write.
USER_CHARACTERS_MAX = 128


def compose(now, address, user):
    """`2026-11-24 02:47:40,414 WARNING django.auth login failed ip=203.0.113.9 user="bob"` and a newline.

    The name is a JSON string in ASCII: quotes, backslashes, every control character and everything that some reader
    might take for a line end is escaped.
    """
    quoted = json.dumps(str(user)[:USER_CHARACTERS_MAX], ensure_ascii=True).replace("\x7f", "\\u007f")
    stamp = f"{now:%Y-%m-%d %H:%M:%S},{now.microsecond // 1000:03d}"
    return f"{stamp} WARNING django.auth login failed ip={address or '-'} user={quoted}\n"


def now():
    """Local time, as log files have it."""
    return datetime.datetime.now()
