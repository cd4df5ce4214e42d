"""Nobody but a listed proxy says who the client is."""

import pytest

from django_blocker import client


def meta(remote, forwarded=None, header="HTTP_X_FORWARDED_FOR"):
    found = {"REMOTE_ADDR": remote}
    if forwarded is not None:
        found[header] = forwarded
    return found


@pytest.mark.parametrize(
    ("proxies", "remote", "forwarded", "expected"),
    [
        # Nobody is listed: the peer it is, whatever the header says.
        ([], "203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ([], "::ffff:203.0.113.9", None, "203.0.113.9"),
        ([], "", "198.51.100.1", None),
        ([], "fe80::1%eth0", None, None),
        # A peer that is not listed is not believed.
        (["192.0.2.1"], "203.0.113.9", "198.51.100.1", "203.0.113.9"),
        # A listed one is, from the right.
        (["192.0.2.1"], "192.0.2.1", "203.0.113.9", "203.0.113.9"),
        (["192.0.2.1"], "192.0.2.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        (["192.0.2.1"], "::ffff:192.0.2.1", "203.0.113.9", "203.0.113.9"),
        (["192.0.2.0/24", "10.0.0.0/8"], "192.0.2.1", "198.51.100.1, 203.0.113.9, 10.1.1.1", "203.0.113.9"),
        (["192.0.2.1"], "192.0.2.1", "203.0.113.9:4711", "203.0.113.9"),
        (["192.0.2.1"], "192.0.2.1", "[2001:db8::9]:4711", "2001:db8::9"),
        (["192.0.2.1"], "192.0.2.1", "2001:db8::9", "2001:db8::9"),
        # What cannot be read is not guessed at, and nothing left of it is believed.
        (["192.0.2.1"], "192.0.2.1", "198.51.100.1, unknown", None),
        (["192.0.2.1"], "192.0.2.1", "198.51.100.1, ", None),
        (["192.0.2.1"], "192.0.2.1", None, None),
        (["192.0.2.1"], "192.0.2.1", "192.0.2.1", None),
        (["192.0.2.1"], "192.0.2.1", "1.2.3.4.5", None),
        (["192.0.2.1"], "192.0.2.1", "01.2.3.4", None),
        (["192.0.2.1"], "192.0.2.1", "[2001:db8::9]x", None),
        # A unix peer has no address; it is believed when it is listed.
        (["unix"], "", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        (["unix"], "203.0.113.9", "198.51.100.1", "203.0.113.9"),
        (["192.0.2.1"], "", "203.0.113.9", None),
        (["nonsense", "192.0.2.1"], "192.0.2.1", "203.0.113.9", "203.0.113.9"),
    ],
)
def test_the_address_is_the_one_a_visitor_cannot_choose(settings_with, proxies, remote, forwarded, expected):
    settings_with(BLOCKER_TRUSTED_PROXIES=proxies)
    assert client.address(meta(remote, forwarded)) == expected


@pytest.mark.parametrize(
    ("header", "value", "expected"),
    [
        ("X-Real-IP", "203.0.113.9", "203.0.113.9"),
        ("Forwarded", 'for=198.51.100.1, for="[2001:db8::9]:80";proto=https', "2001:db8::9"),
        ("Forwarded", "proto=https", None),
        ("Forwarded", "for=_hidden", None),
    ],
)
def test_other_headers_can_be_named(settings_with, header, value, expected):
    settings_with(BLOCKER_TRUSTED_PROXIES=["192.0.2.1"], BLOCKER_FORWARDED_HEADER=header)
    name = "HTTP_" + header.upper().replace("-", "_")
    assert client.address(meta("192.0.2.1", value, name)) == expected


def test_outside_of_requests_nobody_is_known():
    assert client.address(None) is None
