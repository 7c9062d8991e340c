"""Django's own tasks on Celery: the contract of ``BaseTaskBackend``, without a broker of its own."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import celery
import django
import kombu
import pytest

if django.VERSION < (6,):
    pytest.skip("django.tasks comes with Django 6.0", allow_module_level=True)

from asgiref.sync import async_to_sync
from celery import _state
from celery.contrib.testing.worker import start_worker
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.tasks import (
    TaskResultStatus,
    default_task_backend,
    task_backends,
)
from django.tasks.exceptions import (
    InvalidTask,
    InvalidTaskBackend,
    TaskResultDoesNotExist,
    TaskResultMismatch,
)
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.test import override_settings
from django.utils import timezone
from kombu.exceptions import OperationalError, SerializerNotInstalled

from django_app.conf import project_pools
from django_app.task_store import TaskStore
from django_app.tasks import CeleryBackend
from kombu_pools_ext.contrib.celery import CannotAdopt, adopt, adoption_of
from kombu_pools_ext.contrib.celery.adoption import Adoption
from kombu_pools_ext.errors import PublishUnknown
from tests.with_django import jobs

READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
FAILED, SUCCESSFUL = TaskResultStatus.FAILED, TaskResultStatus.SUCCESSFUL
#: Seconds that a worker may take on a busy machine.
PATIENCE = 60.0


class Office:
    """A Celery application over the alias ``default``, which Django's tasks go to."""

    def __init__(self, app: celery.Celery, url: str) -> None:
        self.app = app
        self.url = url
        self.overrides: list[override_settings] = []

    def set(self, queues: Any = ("default", "mail"), **options: Any) -> Any:
        """Set ``TASKS``; return its backend."""
        override = override_settings(
            TASKS={
                "default": {
                    "BACKEND": "django_app.tasks.CeleryBackend",
                    "QUEUES": list(queues),
                    "OPTIONS": options,
                }
            }
        )
        override.enable()
        self.overrides.append(override)
        return task_backends["default"]

    def messages(self, queue: str | None = None) -> list[kombu.Message]:
        """Take the messages out of a queue."""
        found = []
        with kombu.Connection(self.url) as connection:
            bound = self.app.amqp.queues[queue or self.app.conf.task_default_queue](
                connection.default_channel
            )
            bound.declare()
            while (message := bound.get(no_ack=True)) is not None:
                found.append(message)
        return found

    def work(self, *results: Any) -> None:
        """Run a worker until *results* are finished."""
        with start_worker(
            self.app, perform_ping_check=False, shutdown_timeout=PATIENCE, pool="solo"
        ):
            deadline = datetime.now(UTC) + timedelta(seconds=PATIENCE)
            while not all(one.is_finished for one in results):
                assert datetime.now(UTC) < deadline, "no worker has run it"
                for one in results:
                    one.refresh()


@pytest.fixture
def make_office(
    configure: Callable[..., None],
    memory_url: str,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Office]]:
    made: list[Office] = []

    def make(adopted: bool = True, **conf: Any) -> Office:
        configure()
        app = celery.Celery(
            f"office-{queue}",
            broker=memory_url,
            backend=conf.pop("backend", "cache+memory://"),
            set_as_current=False,
        )
        app.conf.update(
            task_default_queue=queue,
            task_default_exchange=queue,
            task_default_routing_key=queue,
            worker_hijack_root_logger=False,
            broker_connection_retry_on_startup=False,
            **conf,
        )
        monkeypatch.setattr(_state, "default_app", app)
        if adopted:
            adopt(app, pools=project_pools)
        made.append(Office(app, memory_url))
        for name in ("mail", "routed", "default"):
            # All brokers in memory have the same queues.
            with kombu.Connection(memory_url) as connection:
                kombu.Queue(name)(connection.default_channel).delete()
        return made[-1]

    yield make
    for one in made:
        for override in reversed(one.overrides):
            override.disable()
        one.app.close()


@pytest.fixture
def office(make_office: Callable[..., Office]) -> Office:
    made = make_office()
    made.set()
    return made


@pytest.fixture
def heard() -> Iterator[list[tuple[str, Any, Any]]]:
    """What Django's signals tell: name, sender, and a copy of the result's status."""
    told: list[tuple[str, Any, Any]] = []
    signals = {"enqueued": task_enqueued, "started": task_started, "finished": task_finished}
    receivers = []
    for name, signal in signals.items():

        def hear(sender: Any, task_result: Any, name: str = name, **what: Any) -> None:
            told.append((name, sender, task_result.status))

        signal.connect(hear)
        receivers.append((signal, hear))
    yield told
    for signal, hear in receivers:
        signal.disconnect(hear)


# -- the contract ------------------------------------------------------------------------------------------------------


def test_the_features(office: Office) -> None:
    backend = task_backends["default"]
    assert isinstance(backend, CeleryBackend)
    assert backend.supports_defer
    assert backend.supports_async_task
    assert backend.supports_priority
    assert backend.supports_get_result
    assert default_task_backend.alias == "default"


def test_a_task_waits_and_a_worker_runs_it(office: Office, heard: list[Any]) -> None:
    before = timezone.now()
    result = jobs.add.enqueue(1, b=2)
    assert (result.status, result.args, result.kwargs) == (READY, [1], {"b": 2})
    assert before <= result.enqueued_at <= timezone.now()
    assert (result.started_at, result.finished_at, result.last_attempted_at) == (None, None, None)
    assert (result.backend, result.errors, result.worker_ids) == ("default", [], [])
    assert result.attempts == 0
    with pytest.raises(ValueError, match="not finished"):
        _ = result.return_value
    office.work(result)
    assert (result.status, result.return_value) == (SUCCESSFUL, 3)
    assert result.enqueued_at <= result.started_at <= result.finished_at <= timezone.now()
    assert result.last_attempted_at == result.started_at
    assert len(result.worker_ids) == result.attempts == 1
    assert heard == [
        ("enqueued", CeleryBackend, READY),
        ("started", CeleryBackend, RUNNING),
        ("finished", CeleryBackend, SUCCESSFUL),
    ]


def test_what_is_read_by_the_id_is_what_enqueue_has_returned(office: Office) -> None:
    result = jobs.send_mail.using(priority=0, run_after=timezone.now()).enqueue("a@b.c")
    assert jobs.send_mail.get_result(result.id) == result
    assert async_to_sync(jobs.send_mail.aget_result)(result.id) == result
    with pytest.raises(TaskResultMismatch):
        jobs.add.get_result(result.id)
    with pytest.raises(TaskResultDoesNotExist):
        jobs.add.get_result("none")


def test_a_failure_is_kept_with_class_and_traceback(office: Office, heard: list[Any]) -> None:
    result = jobs.fails.enqueue("no such thing")
    office.work(result)
    assert result.status == FAILED
    (error,) = result.errors
    assert error.exception_class is LookupError
    assert "raise LookupError(text)\nLookupError: no such thing" in error.traceback
    with pytest.raises(ValueError, match="failed"):
        _ = result.return_value
    assert heard[-1] == ("finished", CeleryBackend, FAILED)


def test_coroutines_contexts_and_values_that_are_no_json(office: Office) -> None:
    slowly, tells = jobs.slowly.enqueue(5), jobs.tells.enqueue()
    wrong = jobs.returns_no_json.enqueue()
    office.work(slowly, tells, wrong)
    assert slowly.return_value == 5
    assert tells.return_value == {
        "id": tells.id,
        "attempt": 1,
        "status": "RUNNING",
        "queue": "default",
        "priority": 0,
    }
    assert wrong.errors[0].exception_class is TypeError


def test_arguments_must_be_json(office: Office) -> None:
    with pytest.raises(TypeError):
        jobs.add.enqueue(object())
    assert office.messages() == []


def test_what_is_no_task_of_a_module_is_refused(office: Office) -> None:
    with pytest.raises(InvalidTask, match="module level"):
        task_backends["default"].task_class(func=lambda: None)
    with pytest.raises(InvalidTask, match="not valid for backend"):
        jobs.add.using(queue_name="other")
    with pytest.raises(InvalidTask, match="aware"):
        jobs.add.using(run_after=datetime(2030, 1, 1))  # that is the mistake
    with pytest.raises(InvalidTask, match="between"):
        jobs.add.using(priority=101)


def test_a_task_can_be_pickled(office: Office) -> None:
    assert pickle.loads(pickle.dumps(jobs.add)) == jobs.add


def test_aenqueue_is_the_same(office: Office, heard: list[Any]) -> None:
    result = async_to_sync(jobs.add.aenqueue)(1, b=2)
    assert heard == [("enqueued", CeleryBackend, READY)]
    assert jobs.add.get_result(result.id) == result
    office.work(result)
    assert result.return_value == 3


def test_both_ways_send_the_same_message(office: Office) -> None:
    send_mail = jobs.send_mail.using(priority=0, run_after=datetime(2030, 1, 1, tzinfo=UTC))
    send_mail.enqueue("a@b.c")
    async_to_sync(send_mail.aenqueue)("a@b.c")
    one, other = office.messages("mail")
    ids = [one.headers["id"], other.headers["id"]]
    for message in (one, other):
        # What differs between any two messages, and what one thread has.
        for name in ("id", "root_id"):
            message.headers.pop(name)
        # kombu's transports carry unknown properties; AMQP does not.
        for name in (
            *("message_id", "correlation_id", "delivery_tag", "reply_to"),
            *("argsrepr", "kwargsrepr"),
        ):
            message.properties.pop(name, None)
        message.payload[1]["about"].pop("enqueued_at")
    assert ids[0] != ids[1]
    assert one.headers == other.headers
    assert one.properties == other.properties
    assert one.payload == other.payload


def test_a_coroutine_as_receiver_is_awaited(office: Office) -> None:
    told = []

    async def hear(task_result: Any, **what: Any) -> None:
        told.append(task_result.id)

    task_enqueued.connect(hear)
    try:
        result = async_to_sync(jobs.add.aenqueue)(1)
    finally:
        task_enqueued.disconnect(hear)
    assert told == [result.id]


# -- what is in the message --------------------------------------------------------------------------------------------


def test_logs_show_the_task_and_its_arguments(office: Office) -> None:
    jobs.add.enqueue(1, b=2)
    (message,) = office.messages()
    assert message.headers["task"] == "django_app.tasks.run"
    assert message.headers["shadow"] == "tests.with_django.jobs.add"
    assert (message.headers["argsrepr"], message.headers["kwargsrepr"]) == ("[1]", "{'b': 2}")


def test_run_after_is_the_eta(office: Office) -> None:
    time = datetime(2030, 1, 1, 12, tzinfo=UTC)
    jobs.add.using(run_after=time).enqueue(1)
    with override_settings(USE_TZ=False, TIME_ZONE="UTC"):
        jobs.add.using(run_after=time.replace(tzinfo=None)).enqueue(1)
    etas = [datetime.fromisoformat(one.headers["eta"]) for one in office.messages()]
    assert etas[0] == time
    assert etas[1].tzinfo is not None


def test_the_default_queue_is_celerys(make_office: Callable[..., Office]) -> None:
    office = make_office(task_routes={"tests.with_django.jobs.t*": {"queue": "routed"}})
    office.set()
    jobs.add.enqueue(1)
    jobs.send_mail.using(priority=0).enqueue("a@b.c")
    jobs.tells.enqueue()
    assert len(office.messages()) == len(office.messages("mail")) == 1
    assert len(office.messages("routed")) == 1
    office.app.amqp.queues.add("default")
    jobs.add.enqueue(1)
    assert len(office.messages("default")) == 1


def test_a_queue_that_celery_does_not_have_is_refused(make_office: Callable[..., Office]) -> None:
    office = make_office(task_create_missing_queues=False)
    backend = office.set()
    with pytest.raises(InvalidTask, match="task_queues"):
        jobs.send_mail.using(priority=0).enqueue("a@b.c")
    (found,) = backend.check()
    assert (found.id, "'mail'" in found.hint) == ("kombu_pools.E010", True)


def test_a_priority_where_there_is_none_is_refused(office: Office) -> None:
    with pytest.raises(InvalidTask, match="x-max-priority"):
        jobs.send_mail.enqueue("a@b.c")
    jobs.send_mail.using(priority=0).enqueue("a@b.c")


# -- results -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conf, options",
    [({"backend": None}, {}), ({"backend": "rpc://"}, {}), ({}, {"results": False})],
)
def test_without_results_a_task_runs_all_the_same(
    make_office: Callable[..., Office], conf: Any, options: Any, heard: list[Any]
) -> None:
    office = make_office(**conf)
    backend = office.set(**options)
    assert not backend.supports_get_result
    result = jobs.add.enqueue(1)
    with pytest.raises(NotImplementedError):
        jobs.add.get_result(result.id)
    done = threading.Event()

    def note(**what: Any) -> None:
        done.set()

    task_finished.connect(note)
    try:
        with start_worker(office.app, perform_ping_check=False, pool="solo"):
            assert done.wait(PATIENCE)
    finally:
        task_finished.disconnect(note)
    assert heard[-1] == ("finished", CeleryBackend, SUCCESSFUL)


def _fails(error: BaseException) -> Callable[..., None]:
    def publish(*args: Any, **kwargs: Any) -> None:
        raise error

    return publish


def test_a_task_that_was_not_sent_leaves_no_result(
    office: Office, monkeypatch: pytest.MonkeyPatch, heard: list[Any]
) -> None:
    saved: list[str] = []
    save = TaskStore.save

    def note(self: TaskStore, result: Any) -> None:
        saved.append(result.id)
        save(self, result)

    monkeypatch.setattr(TaskStore, "save", note)
    monkeypatch.setattr(Adoption, "publish", _fails(OperationalError("the broker is down")))
    with pytest.raises(OperationalError):
        jobs.add.enqueue(1)

    async def apublish(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("the broker is down")

    monkeypatch.setattr("kombu_pools_ext.aliases.Pools.apublish", apublish)
    with pytest.raises(OperationalError):
        async_to_sync(jobs.add.aenqueue)(1)
    # The thread of async_to_sync() ends with the error.
    gc.collect()
    assert len(saved) == 2
    for one in saved:
        with pytest.raises(TaskResultDoesNotExist):
            jobs.add.get_result(one)
    assert heard == []


def test_a_task_that_may_have_been_sent_keeps_its_result(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[str] = []
    save = TaskStore.save

    def note(self: TaskStore, result: Any) -> None:
        stored.append(result.id)
        save(self, result)

    monkeypatch.setattr(TaskStore, "save", note)
    monkeypatch.setattr(Adoption, "publish", _fails(PublishUnknown("its-id")))
    with pytest.raises(PublishUnknown):
        jobs.add.enqueue(1)
    assert jobs.add.get_result(stored[0]).status == READY


def test_a_result_backend_that_fails_too_does_not_hide_the_error(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Adoption, "publish", _fails(OperationalError("the broker is down")))
    monkeypatch.setattr(TaskStore, "forget", _fails(ConnectionError()))
    with pytest.raises(OperationalError, match="the broker is down") as caught:
        jobs.add.enqueue(1)
    assert "was not deleted: ConnectionError" in caught.value.__notes__[0]


def test_a_result_whose_task_is_gone_does_not_exist(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = jobs.add.enqueue(1)
    monkeypatch.delattr(jobs, "add")
    with pytest.raises(TaskResultDoesNotExist, match='does not define a "add"'):
        task_backends["default"].get_result(result.id)


@pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
def test_what_celery_ended_itself_has_failed(office: Office, state: str) -> None:
    result = jobs.add.enqueue(1)
    office.app.backend.store_result(result.id, RuntimeError("lost"), state, "its traceback")
    result.refresh()
    assert result.status == FAILED
    (error,) = result.errors
    assert error.exception_class is RuntimeError
    assert error.traceback == "its traceback"
    assert result.finished_at >= result.enqueued_at
    with override_settings(USE_TZ=False):
        assert jobs.add.get_result(result.id).finished_at.tzinfo is None


def test_another_attempt_is_counted(office: Office) -> None:
    result = jobs.tells.enqueue()
    (message,) = office.messages()
    args, kwargs, _ = message.payload
    run = office.app.tasks["django_app.tasks.run"]
    for number in (1, 2):
        run.push_request(
            id=result.id,
            hostname=f"worker{number}",
            delivery_info={"redelivered": number == 2},
            retries=0,
        )
        try:
            assert run.run(*args, **kwargs)["attempt"] == number
        finally:
            run.pop_request()
    result.refresh()
    assert result.worker_ids == ["worker1", "worker2"]
    assert result.started_at < result.last_attempted_at


def run_here(office: Office, result: Any) -> Any:
    """Run the task that waits, as a worker does, in this thread."""
    (message,) = office.messages()
    args, kwargs, _ = message.payload
    run = office.app.tasks["django_app.tasks.run"]
    run.push_request(id=result.id, hostname="worker", delivery_info={}, retries=0)
    try:
        return run.run(*args, **kwargs)
    finally:
        run.pop_request()


def test_an_exit_has_failed_and_an_interruption_has_not(office: Office) -> None:
    result = jobs.exits.enqueue()
    with pytest.raises(SystemExit):
        run_here(office, result)
    result.refresh()
    assert result.status == FAILED
    assert result.errors[0].exception_class is SystemExit
    assert result.errors[0].traceback.endswith("SystemExit: this task exits\n")
    result = jobs.is_interrupted.enqueue()
    with pytest.raises(KeyboardInterrupt):
        run_here(office, result)
    result.refresh()
    assert result.status == RUNNING


def test_a_task_is_looked_at_again_when_it_is_enqueued(office: Office) -> None:
    task = jobs.add.using(queue_name="mail")
    office.set(queues=["default"])
    for enqueue in (task.enqueue, async_to_sync(task.aenqueue)):
        with pytest.raises(InvalidTask, match="'mail' is not valid for backend"):
            enqueue(1)
    # The thread of async_to_sync() ends with the error.
    gc.collect()


def test_a_backend_can_be_called_itself(office: Office) -> None:
    result = default_task_backend.enqueue(jobs.add, (1,), {"b": 2})
    assert run_here(office, result) == 3


def test_what_is_no_failure_for_celery_is_none(office: Office) -> None:
    result = jobs.ignores.enqueue()
    other = jobs.add.enqueue(1)
    office.work(other)
    result.refresh()
    assert (result.status, result.errors) == (RUNNING, [])


def test_a_worker_runs_only_what_is_a_task(office: Office) -> None:
    result = jobs.add.enqueue(1)
    (message,) = office.messages()
    (_, *rest), kwargs, _ = message.payload
    run = office.app.tasks["django_app.tasks.run"]
    for path, error in (("tests.with_django.jobs.plain", ValueError), ("os.nothing", ImportError)):
        with pytest.raises(error):
            run.run(path, *rest, **kwargs)
        run.apply_async((path, *rest), kwargs, task_id=result.id)
    office.work(result)
    assert result.status == FAILED


def test_a_worker_with_other_settings_says_so(office: Office) -> None:
    jobs.add.enqueue(1)
    (message,) = office.messages()
    args, kwargs, _ = message.payload
    run = office.app.tasks["django_app.tasks.run"]
    with override_settings(
        TASKS={"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}}
    ):
        with pytest.raises(InvalidTaskBackend, match="same TASKS"):
            run.run(*args, **kwargs)


# -- on_commit and task_always_eager -----------------------------------------------------------------------------------


def test_without_the_option_a_task_is_sent_at_once(office: Office) -> None:
    with transaction.atomic():
        jobs.add.enqueue(1)
        assert len(office.messages()) == 1


@pytest.mark.parametrize("on_commit, database", [(True, "default"), ("other", "other")])
def test_with_on_commit_it_is_sent_after_the_commit(
    office: Office, heard: list[Any], on_commit: Any, database: str
) -> None:
    office.set(on_commit=on_commit)
    with transaction.atomic(using=database):
        result = jobs.add.enqueue(1)
        assert (result.enqueued_at, office.messages(), heard) == (None, [], [])
        with pytest.raises(TaskResultDoesNotExist):
            result.refresh()
    assert result.enqueued_at is not None
    assert len(heard) == 1
    office.work(result)
    assert result.return_value == 1
    with pytest.raises(ZeroDivisionError):
        with transaction.atomic(using=database):
            jobs.add.enqueue(1)
            1 / 0
    assert office.messages() == []


def test_with_on_commit_a_mistake_is_found_before_the_commit(
    make_office: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    office = make_office(task_serializer="jsno")
    office.set(on_commit=True)
    with pytest.raises(SerializerNotInstalled):
        with transaction.atomic():
            try:
                jobs.add.enqueue(1)
            except Exception:
                assert transaction.get_connection().in_atomic_block
                raise


def test_with_on_commit_a_failure_is_logged(
    office: Office, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.set(on_commit=True)
    monkeypatch.setattr(Adoption, "publish", _fails(OperationalError("the broker is down")))
    with pytest.raises(OperationalError):
        with transaction.atomic():
            result = jobs.add.enqueue(1)
    (line,) = [one.getMessage() for one in caplog.records if "pools" in one.name]
    assert f"tests.with_django.jobs.add[{result.id}]" in line
    assert "test_tasks.py" in line


def test_an_eager_task_runs_in_this_process(
    make_office: Callable[..., Office], heard: list[Any]
) -> None:
    office = make_office(task_always_eager=True)
    office.set()
    result = jobs.add.enqueue(1, b=2)
    assert (result.status, result.return_value) == (SUCCESSFUL, 3)
    assert [name for name, *_ in heard] == ["enqueued", "started", "finished"]
    failed = jobs.fails.enqueue("no")
    assert failed.status == FAILED
    assert jobs.exits.enqueue().status == FAILED
    with pytest.raises(KeyboardInterrupt):
        jobs.is_interrupted.enqueue()
    office.app.conf.task_eager_propagates = True
    with pytest.raises(LookupError):
        jobs.fails.enqueue("no")
    assert async_to_sync(jobs.add.aenqueue)(1).return_value == 1
    office.set(on_commit=True)
    with transaction.atomic():
        result = jobs.add.enqueue(1)
        assert result.status == READY
    assert result.status == SUCCESSFUL


# -- options and checks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, said",
    [
        ({"ap": "project.celery.app"}, "did you mean 'app'?"),
        ({"app": 5}, "OPTIONS['app'] must be text, not int"),
        ({"app": "tests.with_django.nothing.app"}, "No module named"),
        ({"app": "tests.with_django.jobs:plain"}, "not a celery.Celery"),
        ({"using": "defualt"}, "default"),
        ({"on_commit": "elsewhere"}, "the alias of a database, not 'elsewhere'"),
        ({"results": "no"}, "must be True or False"),
    ],
    ids=str,
)
def test_wrong_options_are_found_by_a_check_and_raise(
    make_office: Callable[..., Office], options: dict[str, Any], said: str
) -> None:
    office = make_office(adopted=False)
    backend = office.set(**options)
    (found,) = backend.check()
    assert found.id == "kombu_pools.E009"
    assert said in found.hint
    with pytest.raises(InvalidTaskBackend, match="TASKS"):
        jobs.add.enqueue(1)
    assert not backend.supports_get_result


def test_options_that_are_no_dict_are_found(office: Office) -> None:
    with override_settings(
        TASKS={"default": {"BACKEND": "django_app.tasks.CeleryBackend", "OPTIONS": 5}}
    ):
        (found,) = task_backends["default"].check()
    assert "must be a dict, not int" in found.hint


def test_without_an_application_or_an_alias_it_says_what_to_do(
    make_office: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    office = make_office(adopted=False)
    backend = office.set()
    with pytest.raises(InvalidTaskBackend, match="KOMBU_POOLS_CELERY"):
        jobs.add.enqueue(1)
    assert "KOMBU_POOLS_CELERY" in backend.check()[0].hint
    monkeypatch.setattr(_state, "default_app", None)
    with pytest.raises(InvalidTaskBackend, match=r"__init__\.py"):
        jobs.add.enqueue(1)


def test_an_alias_in_the_options_adopts_the_application(
    make_office: Callable[..., Office],
) -> None:
    office = make_office(adopted=False)
    backend = office.set(using="default")
    assert backend.check() == []
    jobs.add.enqueue(1)
    assert adoption_of(office.app) == "default"
    assert len(office.messages()) == 1


def test_another_broker_is_found(make_office: Callable[..., Office]) -> None:
    office = make_office(adopted=False)
    office.app.conf.broker_url = "amqp://elsewhere//"
    backend = office.set(using="default")
    assert "@elsewhere" in backend.check()[0].hint
    with pytest.raises(CannotAdopt):
        jobs.add.enqueue(1)
    adopted = make_office()
    adopted.app.conf.broker_url = "amqp://elsewhere//"
    # E008 tells it.
    assert adopted.set().check() == []


def test_wrong_settings_of_the_pools_are_told_by_their_own_check(office: Office) -> None:
    with override_settings(KOMBU_POOLS={"default": {"URL": 5}}):
        assert task_backends["default"].check() == []
        with pytest.raises(ImproperlyConfigured):
            jobs.add.enqueue(1)


def test_right_settings_pass_the_checks(office: Office) -> None:
    assert task_backends["default"].check() == []


# -- priorities --------------------------------------------------------------------------------------------------------


def test_priorities_are_those_of_the_broker(
    make_office: Callable[..., Office], monkeypatch: pytest.MonkeyPatch
) -> None:
    office = make_office(task_queue_max_priority=10)
    backend = office.set()
    settings = SimpleNamespace(is_amqp=True, transport="amqp", transport_options={})
    monkeypatch.setattr("django_app.tasks.pools", SimpleNamespace(settings_of=lambda _: settings))
    found = []
    for priority in (-100, -50, 0, 50, 100):
        options = backend._publish_options(
            office.app, backend._result_of(jobs.add.using(priority=priority), [1], {})
        )
        found.append(options["priority"])
    assert found == [0, 2, 5, 8, 10]
