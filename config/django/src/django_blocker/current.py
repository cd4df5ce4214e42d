"""The request that is being served, for authenticate() calls that are not given one.

A middleware that the app puts in front of all others by itself. Signals would not do: under ASGI their receivers run in
tasks of their own, and what those remember is lost to the request.
"""

from contextvars import ContextVar

from asgiref.sync import iscoroutinefunction
from django.utils.decorators import sync_and_async_middleware

_meta = ContextVar("django_blocker.meta", default=None)

MIDDLEWARE = "django_blocker.current.remember"


def meta():
    """The variables of the request that is being served (HttpRequest.META), or None outside of requests."""
    return _meta.get()


@sync_and_async_middleware
def remember(get_response):
    """Keeps the request's variables while it is served."""
    if iscoroutinefunction(get_response):

        async def middleware(request):
            token = _meta.set(request.META)
            try:
                return await get_response(request)
            finally:
                _meta.reset(token)

    else:

        def middleware(request):
            token = _meta.set(request.META)
            try:
                return get_response(request)
            finally:
                _meta.reset(token)

    return middleware
