"""The login page behind the decorator."""

import logging
from functools import wraps

from django.contrib.auth.views import LoginView
from django.http import HttpResponse
from django.urls import path

logger = logging.getLogger("logins")


def watch_login(view):
    """Logs what came of a login, as sites have done it for years."""

    @wraps(view)
    def watched(request, *args, **kwargs):
        response = view(request, *args, **kwargs)
        if request.method == "POST":
            user, address = request.POST.get("username", ""), request.META.get("REMOTE_ADDR", "")
            if request.user.is_authenticated:
                logger.info("Login Ok %r by %s", user, address)
            else:
                logger.warning("Login Fail %r by %s", user, address)
        return response

    return watched


urlpatterns = [
    path("", lambda request: HttpResponse("hello\n")),
    path("login/", watch_login(LoginView.as_view())),
]
