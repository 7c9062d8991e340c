"""``django_app.tasks`` where it cannot be: before Django 6, and without Celery."""

from __future__ import annotations

import subprocess
import sys

import django
import pytest


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "missing, needed",
    [
        ("django.tasks", "needs Django 6.0 or newer, which has django.tasks; this is Django"),
        pytest.param(
            "celery",
            'needs Celery: pip install "kombu-pools-ext[celery]"',
            marks=pytest.mark.skipif(
                django.VERSION < (6,), reason="django.tasks comes with Django 6.0"
            ),
        ),
    ],
)
def test_the_import_says_what_it_needs(missing: str, needed: str) -> None:
    said = run(
        f"""
import sys
sys.modules[{missing!r}] = None
try:
    import django_app.tasks
except ModuleNotFoundError as error:
    print(error)
"""
    )
    assert needed in said


def test_celerys_autodiscovery_goes_on() -> None:
    assert (
        run(
            """
import sys
sys.modules["django.tasks"] = None
from celery.loaders.base import find_related_module
print(find_related_module("django_app", "tasks"))
"""
        )
        == "None\n"
    )


def test_the_start_of_a_process_goes_on() -> None:
    run(
        """
import sys
sys.modules["django.tasks"] = None
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django_app"],
    KOMBU_POOLS={"default": "memory://"},
    TASKS={"default": {"BACKEND": "django_app.tasks.CeleryBackend"}, "wrong": 5},
)
django.setup()
settings.TASKS = 5
django.apps.apps.get_app_config("kombu_pools").ready()
"""
    )
