"""The same site with the well-known decorator instead of the app: its own log line, in a file that rolls over."""

import os

from settings import *  # noqa: F403
from settings import INSTALLED_APPS as _INSTALLED_APPS

INSTALLED_APPS = [app for app in _INSTALLED_APPS if app != "django_blocker"]
ROOT_URLCONF = "classic_urls"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"classic": {"format": "%(created)d|%(levelname)s|%(message)s"}},
    "handlers": {
        "logins": {
            "class": "logging.handlers.RotatingFileHandler",
            "filename": os.environ.get("SITE_LOG", "auth.log"),
            # So few that the file rolls over between two guesses.
            "maxBytes": int(os.environ.get("SITE_LOG_BYTES", "100")),
            "backupCount": 20,
            "formatter": "classic",
        }
    },
    "loggers": {"logins": {"handlers": ["logins"], "level": "INFO", "propagate": False}},
}
