"""The outbox: messages as rows of the application's transactions, which a relay brings to the broker.

::

    INSTALLED_APPS = [..., "django_app", "django_app.outbox"]

``manage.py migrate`` makes the tables.
"""
