from django.urls import path

import views

urlpatterns = [
    path("", views.page, name="page"),
    path("orders/", views.orders),
    path("orders/up-to/", views.orders_up_to),
    path("invoices/", views.invoices),
]
