"""The project of these tests."""

SECRET_KEY = "for the tests of Django alone"
DEBUG = False
ALLOWED_HOSTS = ["testserver"]
INSTALLED_APPS = ["django_app"]
MIDDLEWARE: list[str] = []
ROOT_URLCONF = "tests.with_django.urls"
USE_TZ = True
# pytest's own will do.
LOGGING_CONFIG = None
DATABASES = {
    alias: {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    for alias in ("default", "other")
}
KOMBU_POOLS = {"default": {"URL": "memory://with-django"}}
#: From Django 6.0 on. Tests set their own backend; tasks look at the queues when they are defined.
TASKS = {
    "default": {
        "BACKEND": "django.tasks.backends.immediate.ImmediateBackend",
        "QUEUES": ["default", "mail"],
    }
}
