"""The commands of a project reach its workers and beat, and count the tasks that they send."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from kombu.exceptions import EncodeError

from kombu_pools_ext import Pools
from kombu_pools_ext.control import local
from kombu_pools_ext.control.answer import Answer, Answers
from kombu_pools_ext.control.process_info import Process
from kombu_pools_ext.control.rendering import answer_table
from kombu_pools_ext.control.request import Request
from tests.integration.rig import Served, eventually
from tests.with_celery.project import Project

# -- counting ----------------------------------------------------------------------------------------------------------


def tasks_of(pools: Pools) -> list[int | None]:
    return [row.tasks for row in local.status(pools)]


def test_a_process_without_an_application_has_no_count(amqp_url: str) -> None:
    assert tasks_of(Pools(default={"url": amqp_url})) == [None]


def test_the_tasks_of_an_application_are_counted_and_nothing_else(
    make_app: Callable[..., celery.Celery], pools: Pools
) -> None:
    app = make_app(pools.settings["default"].connection().as_uri(include_password=True), pools)
    app.tasks["add"].delay()
    app.send_task("add")
    app.control.broadcast("nothing")
    with app.events.default_dispatcher() as events:
        events.send("task-custom")
    assert tasks_of(pools) == [2]
    with app.producer_or_acquire() as producer:
        producer.channel.basic_qos(0, 1, False)
        app.tasks["add"].apply_async(producer=producer)
    assert tasks_of(pools) == [3]


def test_a_task_that_was_not_sent_is_not_counted(
    make_app: Callable[..., celery.Celery], pools: Pools
) -> None:
    app = make_app(pools.settings["default"].connection().as_uri(include_password=True), pools)
    with pytest.raises(EncodeError, match="not JSON serializable"):
        app.tasks["add"].delay(object())
    assert tasks_of(pools) == [0]


def test_a_forked_child_begins_with_none(
    make_app: Callable[..., celery.Celery], pools: Pools
) -> None:
    app = make_app(pools.settings["default"].connection().as_uri(include_password=True), pools)
    app.tasks["add"].delay()
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            before = tasks_of(pools)
            app.tasks["add"].delay()
            os.write(writing, json.dumps([*before, *tasks_of(pools)]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        assert json.load(file) == [0, 1]
    os.waitpid(pid, 0)
    assert tasks_of(pools) == [1]


def table_of(*rows: dict[str, Any]) -> list[str]:
    answers = [
        Answer(Process(f"web1:{number}", "web1", number), "done", (row,), seconds=0.01)
        for number, row in enumerate(rows)
    ]
    return [text for _, text in answer_table(Answers(Request(command="status"), tuple(answers)))]


def test_the_table_has_a_column_for_tasks_where_there_are_some() -> None:
    row = {"alias": "default", "limit": None, "closed": {}, "broker": "amqp://mq//"}
    assert "TASKS" not in table_of(row, {**row, "tasks": None})[0]
    head, plain, adopted = table_of(row, {**row, "tasks": 12})
    at = head.index("TASKS")
    assert plain[: at + 5].endswith(" –")
    assert adopted[: at + 5].endswith(" 12")
    assert "∞" in plain


# -- a project ---------------------------------------------------------------------------------------------------------

BEAT = """
CELERY_BEAT_SCHEDULE = {"each": {"task": "project.tasks.add", "schedule": 0.2, "args": (1,)}}
"""
FAN = """

@shared_task
def fan(count):
    for number in range(count):
        add.delay(number)
"""


@pytest.fixture
def project(tmp_path: Path, amqp_url: str) -> Iterator[Project]:
    made = Project(tmp_path, amqp_url)
    made.write("settings", BEAT, "a")
    made.write("tasks", FAN, "a")
    yield made
    made.delete()


def served(project: Project, folder: str, *arguments: str) -> Served:
    where = project.folder / folder
    where.mkdir()
    paths = os.pathsep.join([str(project.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "celery", "-A", "project", *arguments]
    environment = {"PYTHONPATH": paths, "DJANGO_SETTINGS_MODULE": "project.settings"}
    return Served(command, environment, where, 0)


def command(project: Project, *arguments: str) -> dict[str, Any]:
    done = project.run("-m", "django", "kombu_pools", *arguments, "--format", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def rows_of(answer: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows by the role of their process."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in answer["processes"]:
        role = f"{one['process']['server']} {one['process']['kind']}"
        found.setdefault(role, []).extend(one["rows"])
    return found


@pytest.mark.slow
def test_status_shows_workers_and_beat_with_their_tasks_and_reset_reaches_them(
    project: Project,
) -> None:
    options = ("--pool", "prefork", "--concurrency", "2", "--include", "project.tasks")
    with (
        served(project, "worker", "worker", *options) as worker,
        served(project, "beat", "beat", "--schedule", "schedule") as beat,
    ):
        project.script("from project.tasks import fan\nfan.delay(7)")

        def both_have_sent_tasks() -> bool:
            rows = rows_of(command(project, "status"))
            fanned = sum(row["tasks"] or 0 for row in rows.get("celery prefork worker", ()))
            return fanned == 7 and any(row["tasks"] for row in rows.get("celery beat", ()))

        eventually(both_have_sent_tasks, lambda: worker.log + beat.log)
        reset = rows_of(command(project, "reset"))
        assert {"celery prefork worker", "celery beat"} <= reset.keys()
        assert sum(row["closed"] + row["lent"] for row in reset["celery beat"]) >= 1

        # They go on, over new connections.
        def sent_by_beat() -> int:
            return sum(row["tasks"] for row in rows_of(command(project, "status"))["celery beat"])

        before = sent_by_beat()
        eventually(lambda: sent_by_beat() > before, lambda: beat.log)
        for one in (worker, beat):
            one.signal(signal.SIGTERM)
            one.ends()
