"""What cannot work is said by `manage.py check`."""

import pytest

from django_blocker.checks import check_settings


@pytest.mark.parametrize(
    ("settings", "id", "says"),
    [
        ({"BLOCKER_TRUSTED_PROXY": []}, "W001", "BLOCKER_TRUSTED_PROXIES"),
        ({"BLOCKER_TRUSTED_PROXIES": "10.0.0.1"}, "W002", "['10.0.0.1']"),
        ({"BLOCKER_TRUSTED_PROXIES": ["proxy.example.org"]}, "W003", "proxy.example.org"),
        ({"BLOCKER_TRUSTED_PROXIES": ["0.0.0.0/0"]}, "W004", "every visitor"),
        ({"SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https")}, "W005", "SECURE_PROXY_SSL_HEADER"),
        ({"USE_X_FORWARDED_HOST": True}, "W005", "USE_X_FORWARDED_HOST"),
        ({"BLOCKER_LOG": None}, "W006", "nowhere"),
        ({"BLOCKER_LOG": "/proc/self/exe"}, "W007", "symbolic link"),
        ({"BLOCKER_LOG": "/dev/null"}, "W007", "not a regular file"),
    ],
)
def test_each_mistake_has_its_warning(settings_with, settings, id, says):
    settings_with(**settings)
    found = [warning for warning in check_settings() if warning.id == f"django_blocker.{id}"]
    assert len(found) == 1, check_settings()
    assert says in found[0].msg + found[0].hint
    assert found[0].hint


def test_a_right_configuration_has_none(settings_with):
    settings_with(BLOCKER_TRUSTED_PROXIES=["10.0.0.0/8", "unix"], USE_X_FORWARDED_HOST=True)
    assert check_settings() == []
