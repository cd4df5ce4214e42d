"""From Django's signal to a line."""

import logging

from . import client, current, line, sink

logger = logging.getLogger("django_blocker")

_said_unknown = False


def login_failed(sender, credentials=None, request=None, **kwargs):
    """Writes a failed login; a receiver of user_login_failed that never raises."""
    global _said_unknown
    try:
        meta = getattr(request, "META", None)
        # REST framework wraps requests, and authenticate() need not be given any.
        if meta is None:
            meta = current.meta()
        address = client.address(meta)
        if address is None and not _said_unknown:
            _said_unknown = True
            logger.warning(
                "a login failed at an address that is not known, so nobody can be banned for it; "
                "behind a unix socket or a proxy set BLOCKER_TRUSTED_PROXIES; this is said once"
            )
        sink.write(line.compose(line.now(), address, user_of(credentials or {})))
    except Exception:
        logger.exception("a failed login could not be written")


def user_of(credentials):
    """The name that was tried. Django has masked what looks secret; only names are looked at all the same."""
    from django.contrib.auth import get_user_model

    for key in (get_user_model().USERNAME_FIELD, "username", "email"):
        if credentials.get(key):
            return credentials[key]
    return ""
