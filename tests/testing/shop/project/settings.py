"""Settings of the project. No broker is at these URLs."""

SECRET_KEY = "of no use"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = ["django_app", "orders", "billing", "stock"]
ROOT_URLCONF = "project.urls"
KOMBU_POOLS = {
    "default": {"URL": "amqp://shop:secret@broker.invalid//", "LIMIT": 5, "ACQUIRE_TIMEOUT": 1},
    "audit": {"URL": "amqp://shop:secret@audit.invalid//", "RETRY": None},
}
KOMBU_POOLS_CELERY = "default"
CELERY_BROKER_URL = "amqp://shop:secret@broker.invalid//"
CELERY_TASK_IGNORE_RESULT = True
TEST_RUNNER = "django_app.testing.TestRunner"
