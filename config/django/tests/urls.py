"""Every way to log in that the tests know."""

from django.contrib import admin
from django.contrib.auth import authenticate
from django.contrib.auth.views import LoginView
from django.http import HttpResponse
from django.urls import path


def bare(request):
    """A view that authenticates without handing the request on."""
    authenticate(username=request.GET.get("u"), password="wrong")
    return HttpResponse("done")


async def bare_async(request):
    """The same, asynchronously."""
    from asgiref.sync import sync_to_async

    await sync_to_async(authenticate)(username=request.GET.get("u"), password="wrong")
    return HttpResponse("done")


urlpatterns = [
    path("login/", LoginView.as_view(template_name="admin/login.html")),
    path("admin/", admin.site.urls),
    path("bare/", bare),
    path("bare-async/", bare_async),
]

try:
    from rest_framework.authentication import BasicAuthentication
    from rest_framework.permissions import IsAuthenticated
    from rest_framework.response import Response
    from rest_framework.views import APIView

    class Api(APIView):
        """An API behind HTTP basic authentication."""

        authentication_classes = [BasicAuthentication]
        permission_classes = [IsAuthenticated]

        def get(self, request):
            return Response({})

    urlpatterns.append(path("api/", Api.as_view()))
except ImportError:
    pass
