"""Connects everything when Django starts."""

from django.apps import AppConfig


class BlockerConfig(AppConfig):
    """The app; nothing else has to be configured."""

    name = "django_blocker"
    verbose_name = "blocker"

    def ready(self):
        from django.conf import settings
        from django.contrib.auth.signals import user_login_failed

        from . import checks, current, handler

        checks.register()
        # Servers build the chain of middleware after this, so the app needs no second line in the settings.
        if current.MIDDLEWARE not in settings.MIDDLEWARE:
            settings.MIDDLEWARE = [current.MIDDLEWARE, *settings.MIDDLEWARE]
        user_login_failed.connect(handler.login_failed, dispatch_uid="django_blocker.login_failed")
