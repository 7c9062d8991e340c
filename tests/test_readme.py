"""The README's examples work as a reader copies them, in memory and on RabbitMQ."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import kombu
import pytest

from tests.brokers import PrivateRabbitMQ

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```python\n# (\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BROKER = "amqp://guest:guest@localhost//"
MEMORY = "memory://"

#: Written beside the copied examples, to use them. A Django project has a database, which on_commit asks.
DJANGO = """
import asyncio, django, os
import settings
settings.DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()
from django.core.management import call_command
from django.test import RequestFactory
import views
request = RequestFactory().post("/orders/")
assert views.create_order(request).content == b"ordered"
assert asyncio.run(views.create_order_async(request)).content == b"ordered"
call_command("kombu_pools", "ping")
import kombu
with kombu.Connection("memory://") as connection:
    with connection.SimpleQueue("orders") as queue:
        assert [queue.get(timeout=5).payload for _ in range(2)] == [{"id": 1}, {"id": 2}]
"""
FLASK = """
from app import app
assert app.test_client().post("/orders").text == "ordered"
import kombu
with kombu.Connection("memory://") as connection:
    assert connection.SimpleQueue("orders").get(timeout=5).payload == {"id": 1}
"""
PLAIN = """
import plain
import kombu
with kombu.Connection("memory://") as connection:
    assert connection.SimpleQueue("orders").get(timeout=5).payload == {"id": 1}
"""


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest) -> str:
    """A broker without any of the queues, so that an example fails if it does not declare its queue."""
    if request.param == "memory":
        return MEMORY
    node: PrivateRabbitMQ = request.getfixturevalue("private_rabbitmq")
    with kombu.Connection(node.url) as connection:
        kombu.Queue("orders")(connection.default_channel).delete()
    return node.url


@pytest.mark.parametrize(
    "files, use",
    [({"settings.py", "views.py"}, DJANGO), ({"app.py"}, FLASK), ({"plain.py"}, PLAIN)],
    ids=["django", "flask", "plain"],
)
def test_the_example_runs_as_copied(files: set[str], use: str, url: str, tmp_path: Path) -> None:
    found = dict(BLOCK.findall(README.read_text()))
    assert files <= found.keys()
    for name in files:
        (tmp_path / name).write_text(found[name].replace(BROKER, url))
    (tmp_path / "use.py").write_text(use.replace(MEMORY, url))
    done = subprocess.run(
        [sys.executable, "use.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_example_of_the_readme_is_run() -> None:
    text = README.read_text()
    assert len(BLOCK.findall(text)) == text.count("```python") == 4


def test_a_reader_can_copy_each_example_within_ten_lines() -> None:
    """Blank lines are not counted, because a formatter decides where they are."""
    for name, code in BLOCK.findall(README.read_text()):
        assert len([line for line in code.splitlines() if line]) <= 10, name
