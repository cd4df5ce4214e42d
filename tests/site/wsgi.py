"""For gunicorn; DJANGO_SETTINGS_MODULE says which settings."""

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
