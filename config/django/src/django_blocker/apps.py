"""Connects everything when Django starts."""

from django.apps import AppConfig


class BlockerConfig(AppConfig):
    """The app; nothing else has to be configured."""

    name = "django_blocker"
    verbose_name = "blocker"

    def ready(self):
        from django.contrib.auth.signals import user_login_failed
        from django.core.signals import request_finished, request_started

        from . import checks, current, handler

        checks.register()
        request_started.connect(current.remember, dispatch_uid="django_blocker.remember")
        request_finished.connect(current.forget, dispatch_uid="django_blocker.forget")
        user_login_failed.connect(handler.login_failed, dispatch_uid="django_blocker.login_failed")
