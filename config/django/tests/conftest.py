"""One small Django project for all tests; every test gets a log of its own."""

import pathlib
import shutil
import sys
import tempfile

import django
import pytest
from django.conf import settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def pytest_configure():
    try:
        import rest_framework  # noqa: F401

        rest = ["rest_framework"]
    except ImportError:
        rest = []
    settings.configure(
        SECRET_KEY="made for tests",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="urls",
        USE_TZ=True,
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{tempfile.mkdtemp()}/tests.sqlite3"}},
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.messages",
            "django.contrib.sessions",
            *rest,
            "django_blocker",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    )
    django.setup()


@pytest.fixture(scope="session", autouse=True)
def database():
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    yield
    shutil.rmtree(pathlib.Path(settings.DATABASES["default"]["NAME"]).parent)


@pytest.fixture(autouse=True)
def log(tmp_path):
    """The path of the log this test's failed logins go to."""
    from django.test import override_settings

    path = tmp_path / "auth.log"
    with override_settings(BLOCKER_LOG=str(path)):
        yield path


@pytest.fixture
def client():
    from django.test import Client

    return Client()


@pytest.fixture
def settings_with():
    """override_settings for the rest of the test."""
    from django.test import override_settings

    active = []

    def override(**values):
        active.append(override_settings(**values))
        active[-1].enable()

    yield override
    for one in reversed(active):
        one.disable()


def filter_samples():
    """The samples that blocker's own filter is tested with."""
    top = pathlib.Path(__file__).resolve().parents[3]
    return tomllib.loads((top / "config/filters/django.toml").read_text())["sample"]
