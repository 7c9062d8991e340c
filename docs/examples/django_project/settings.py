import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent

# Whoever has it may steer the pools: commands reach all processes with this one, Django's and Flask's.
SECRET_KEY = os.environ.get("SECRET_KEY", "for this example only")
DEBUG = os.environ.get("DEBUG") == "1"
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]

INSTALLED_APPS = [
    "django.contrib.messages",
    "django_app",
    "django_app.outbox",
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DATABASE", BASE_DIR / "shop.sqlite3"),
    }
}

KOMBU_POOLS = {
    "default": {
        "URL": os.environ.get("BROKER_URL", "amqp://guest:guest@localhost//"),
        "LIMIT": 10,
        # A restart of the broker takes ten seconds or so. A request waits for it rather than fail: for a connection,
        # for the broker's confirm with all further tries, and however long the broker has been away already.
        "ACQUIRE_TIMEOUT": 20,
        "CONFIRM_TIMEOUT": 20,
        "OUTAGE_PATIENCE": 20,
    },
    # These are rows of the transaction that needs them, and `manage.py kombu_pools relay` publishes them.
    "invoices": {
        "URL": os.environ.get("INVOICES_URL", "amqp://guest:guest@localhost//"),
        "OUTBOX": True,
    },
}
ORDERS_QUEUE = os.environ.get("ORDERS_QUEUE", "orders")

ROOT_URLCONF = "urls"
WSGI_APPLICATION = "wsgi.application"
TEST_RUNNER = "django_app.testing.TestRunner"
MIDDLEWARE = [
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
MESSAGE_STORAGE = "django.contrib.messages.storage.cookie.CookieStorage"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}
