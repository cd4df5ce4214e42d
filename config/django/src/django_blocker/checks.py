"""System checks: what cannot work is said before the first attack."""

import difflib
import ipaddress
import os

from django.conf import settings
from django.core import checks

from . import conf


def register():
    """Registers the checks with Django; called once when the app is ready."""
    checks.register(check_settings, checks.Tags.security)


def check_settings(app_configs=None, **kwargs):
    """All warnings about the settings as they are now."""
    return [*_unknown_names(), *_proxies(), *_log()]


def _unknown_names():
    for name in dir(settings):
        if name.startswith("BLOCKER_") and name not in conf.DEFAULTS:
            close = difflib.get_close_matches(name, conf.DEFAULTS, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"Known are {', '.join(sorted(conf.DEFAULTS))}."
            yield checks.Warning(f"The setting {name} is not known.", hint=hint, id="django_blocker.W001")


def _proxies():
    listed = conf.get("BLOCKER_TRUSTED_PROXIES")
    if isinstance(listed, str):
        yield checks.Warning(
            "BLOCKER_TRUSTED_PROXIES is a string, not a list.",
            hint=f"Write BLOCKER_TRUSTED_PROXIES = [{listed!r}].",
            id="django_blocker.W002",
        )
        listed = [listed]
    for entry in listed or ():
        if entry == conf.UNIX:
            continue
        try:
            network = ipaddress.ip_network(str(entry), strict=False)
        except ValueError:
            yield checks.Warning(
                f"BLOCKER_TRUSTED_PROXIES holds {entry!r}, which is neither an address nor a network.",
                hint='Write addresses such as "192.0.2.1", networks such as "10.0.0.0/8", or "unix".',
                id="django_blocker.W003",
            )
            continue
        if network.prefixlen == 0:
            yield checks.Warning(
                f"BLOCKER_TRUSTED_PROXIES holds {entry!r}: then every visitor can choose who is banned.",
                hint="List only the proxies that you run.",
                id="django_blocker.W004",
            )
    behind = [name for name in ("USE_X_FORWARDED_HOST", "USE_X_FORWARDED_PORT", "SECURE_PROXY_SSL_HEADER") if getattr(settings, name, None)]
    if behind and not listed:
        yield checks.Warning(
            f"{behind[0]} says that the site is behind a proxy, but none is listed: the proxy itself would be blamed.",
            hint='Set BLOCKER_TRUSTED_PROXIES to the proxy\'s address, or to ["unix"] when it connects over a unix socket.',
            id="django_blocker.W005",
        )


def _log():
    path = conf.get("BLOCKER_LOG")
    if not path:
        if not conf.get("BLOCKER_SOCKET"):
            yield checks.Warning(
                "Neither BLOCKER_LOG nor BLOCKER_SOCKET is set: failed logins go nowhere.",
                hint="Set one of them.",
                id="django_blocker.W006",
            )
        return
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    if os.path.lexists(path):
        wrong = None
        if os.path.islink(path):
            wrong = "is a symbolic link, which is not followed"
        elif not os.path.isfile(path):
            wrong = "is not a regular file"
        elif not os.access(path, os.W_OK):
            wrong = "is not writable by this user"
    else:
        nearest = folder
        while not os.path.isdir(nearest) and os.path.dirname(nearest) != nearest:
            nearest = os.path.dirname(nearest)
        wrong = None if os.access(nearest, os.W_OK | os.X_OK) else f"cannot be made: {nearest} is not writable by this user"
    if wrong:
        yield checks.Warning(
            f"BLOCKER_LOG = {path!r} {wrong}.",
            hint=f"Make it once: sudo install -d -o USER -g adm -m 750 {folder}, where the site runs as USER.",
            id="django_blocker.W007",
        )
