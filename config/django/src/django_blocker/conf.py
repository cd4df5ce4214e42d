"""The settings, read when they are used, so that tests and reloads see changes."""

import ipaddress

from django.conf import settings

DEFAULTS = {
    "BLOCKER_LOG": "/var/log/django-blocker/auth.log",
    "BLOCKER_SOCKET": None,
    "BLOCKER_TRUSTED_PROXIES": (),
    "BLOCKER_FORWARDED_HEADER": "X-Forwarded-For",
}

# Stands in BLOCKER_TRUSTED_PROXIES for peers that have no address.
UNIX = "unix"


def get(name):
    """The value of a setting, or its default."""
    return getattr(settings, name, DEFAULTS[name])


def trusted_proxies():
    """The listed networks, and whether unix peers are trusted. What is no network is left out; a check reports it."""
    networks, unix = [], False
    listed = get("BLOCKER_TRUSTED_PROXIES")
    if isinstance(listed, str):
        listed = [listed]
    for entry in listed or ():
        if entry == UNIX:
            unix = True
            continue
        try:
            networks.append(ipaddress.ip_network(str(entry), strict=False))
        except ValueError:
            pass
    return networks, unix
