"""The URLs of the project."""

from django.urls import path
from orders import views

urlpatterns = [
    path("orders/<int:number>/", views.place),
    path("orders/<int:number>/status/", views.status),
]
