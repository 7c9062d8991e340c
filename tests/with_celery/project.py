"""A Django project with Celery, whose application is adopted."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path
from typing import Any

import kombu

from tests.broker.common import PATIENCE

__all__ = ["Project"]

SETTINGS = """
SECRET_KEY = "for this test alone"
INSTALLED_APPS = ["django_app"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
USE_TZ = True
KOMBU_POOLS = {"default": {"URL": URL, "PUBLISH_OVER": "shared"}}
KOMBU_POOLS_CELERY = "default"
CELERY_BROKER_URL = URL
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_DEFAULT_QUEUE = QUEUE
"""
CELERY = """
import os
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
app = Celery("project")
app.config_from_object("django.conf:settings", namespace="CELERY")
"""
TASKS = """
from celery import shared_task

@shared_task
def add(a, b=0):
    pass
"""


class Project:
    """A Django project with Celery, as Celery's documentation has it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.queue = f"django-{uuid.uuid4().hex}"
        self.write("settings", f"URL = {url!r}\nQUEUE = {self.queue!r}\n{SETTINGS}")
        self.write("celery", CELERY)
        self.write("tasks", TASKS)
        self.write("__init__", "from .celery import app as celery_app")

    def write(self, module: str, text: str, mode: str = "w") -> None:
        file = self.folder / "project" / f"{module}.py"
        file.parent.mkdir(exist_ok=True)
        with file.open(mode) as writing:
            writing.write(textwrap.dedent(text) + "\n")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "project.settings"},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )

    def script(self, text: str) -> None:
        """Run a program in it, which must end well."""
        done = self.run("-c", f"import django\ndjango.setup()\n{textwrap.dedent(text)}")
        assert done.returncode == 0, done.stdout + done.stderr

    def arguments(self) -> list[Any]:
        """What the tasks in its queue were sent with."""
        found = []
        with kombu.Connection(self.url) as connection:
            bound = kombu.Queue(self.queue)(connection.default_channel)
            while (message := bound.get(no_ack=True)) is not None:
                assert "message_id" in message.properties
                found.append(message.payload[0][0])
        return found

    def delete(self) -> None:
        with kombu.Connection(self.url) as connection:
            kombu.Queue(self.queue)(connection.default_channel).delete()
