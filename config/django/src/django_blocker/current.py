"""The request that is being served, for authenticate() calls that are not given one.

WSGI hands its environ to request_started; ASGI a scope. Kept in asgiref's Local, which follows a request through
threads and tasks.
"""

from asgiref.local import Local

_local = Local()


def remember(sender, environ=None, scope=None, **kwargs):
    """Keeps what the server said of the request that begins."""
    if environ is not None:
        _local.meta = environ
    elif scope is not None:
        _local.meta = _meta_of_scope(scope)


def forget(sender, **kwargs):
    """The request is over."""
    _local.meta = None


def meta():
    """The request's variables, as in HttpRequest.META, or None outside of requests."""
    return getattr(_local, "meta", None)


def _meta_of_scope(scope):
    """The few variables that are needed, under their WSGI names."""
    client = scope.get("client")
    found = {"REMOTE_ADDR": client[0] if client else ""}
    for name, value in scope.get("headers", ()):
        key = "HTTP_" + name.decode("latin1").upper().replace("-", "_")
        # A header that comes twice is one list (RFC 9110 5.3).
        text = value.decode("latin1")
        found[key] = f"{found[key]},{text}" if key in found else text
    return found
