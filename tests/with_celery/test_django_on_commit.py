"""A Django project whose tasks wait for the commit: which of them have the checks, by the setting alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.with_celery.test_frameworks import Project

ASSERTS = """
from django.db import transaction
from celery import current_app
from celery.contrib.django.task import DjangoTask
from kombu.exceptions import EncodeError
from django_app.celery_on_commit import apply_async_on_commit, delay_on_commit
from project.tasks import add

for wrong, error in (((), TypeError), ((object(),), EncodeError)):
    try:
        with transaction.atomic():
            add.delay_on_commit(1)
            add.delay_on_commit(*wrong)
    except error:
        pass
    else:
        raise AssertionError(wrong)
with transaction.atomic():
    assert isinstance(add.delay_on_commit(2), str)
with current_app.producer_or_acquire() as producer:
    queue = current_app.amqp.queues[current_app.conf.task_default_queue](producer.channel)
    found = []
    while (message := queue.get(no_ack=True)) is not None:
        found.append(message.payload[0])
assert found == [[2]], found
assert DjangoTask.delay_on_commit is not delay_on_commit
assert add.delay_on_commit.__func__ is delay_on_commit
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path, "memory://")
    yield made
    made.delete()


def test_tasks_of_the_project_have_the_checks(project: Project) -> None:
    project.script(ASSERTS)


def test_so_have_those_of_an_application_that_is_made_after_the_start(project: Project) -> None:
    project.write("__init__", "")
    project.script(f"import project.celery\n{ASSERTS}")


def test_so_have_those_of_one_that_was_finalized_before_it_and_of_classes(project: Project) -> None:
    project.write(
        "celery",
        """
        class Base(app.Task):
            abstract = True

        @app.task(base=Base)
        def own(a):
            pass

        app.finalize()
        """,
        "a",
    )
    project.script(ASSERTS)
    project.script(
        """
        from project.celery import own
        from django_app.celery_on_commit import delay_on_commit
        assert own.delay_on_commit.__func__ is delay_on_commit
        """
    )


def test_without_the_setting_they_are_celerys(project: Project) -> None:
    project.write("settings", "KOMBU_POOLS_CELERY = None", "a")
    project.script(
        """
        from celery.contrib.django.task import DjangoTask
        from project.tasks import add
        assert add.delay_on_commit.__func__ is DjangoTask.delay_on_commit
        """
    )
