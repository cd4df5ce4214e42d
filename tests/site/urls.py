"""The login page, the admin, and a front page."""

from django.contrib import admin
from django.contrib.auth.views import LoginView
from django.http import HttpResponse
from django.urls import path

urlpatterns = [
    path("", lambda request: HttpResponse("hello\n")),
    path("login/", LoginView.as_view()),
    path("admin/", admin.site.urls),
]
