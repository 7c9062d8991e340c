"""Messages that wait for a commit: which are sent, when and in which order, and how failures are reported."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import marshal
import pickle
import unittest
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import kombu
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.db.transaction import TransactionManagementError
from django.test import TestCase
from django.utils.functional import lazy
from django.utils.translation import get_language, gettext_lazy, override
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu import Queue
from kombu.exceptions import EncodeError, OperationalError
from kombu.serialization import registry

from django_app import after_commit, connections, publish, publish_on_commit
from django_app.lazy_text import rendered
from kombu_pools_ext.errors import BatchFailed, BrokerUnreachable, Outcome

SECRET = "s3cr3t-word"
LOGGER = "kombu_pools_ext.django"

#: The language in which it is rendered.
language = lazy(lambda: f"text in {get_language()}", str)


@pytest.fixture
def target(queue: str) -> Queue:
    return Queue(queue, durable=False, expires=60)


@pytest.fixture
def now(configure: Callable[..., None], memory_url: str, target: Queue) -> Callable[[], list[Any]]:
    """Configure the alias on a broker in memory. Returns what has arrived there since the last call."""
    configure()
    with kombu.Connection(memory_url) as connection:
        target(connection.default_channel).declare()

    def arrived() -> list[Any]:
        found = []
        with kombu.Connection(memory_url) as connection:
            bound = target(connection.default_channel)
            while (message := bound.get(no_ack=True)) is not None:
                found.append(message.payload)
        return found

    return arrived


@pytest.fixture
def amqp(
    configure: Callable[..., None], amqp_url: str, target: Queue
) -> Callable[[int], list[Any]]:
    """Configure the alias on RabbitMQ. Returns the bodies of the next messages there."""
    configure(URL=amqp_url)
    publish("first", target.name, declare=[target])
    assert receive_all(amqp_url, target, 1) == ["first"]
    return lambda count: receive_all(amqp_url, target, count)


def receive_all(url: str, queue: Queue, count: int) -> list[Any]:
    with kombu.Connection(url) as connection:
        simple = connection.SimpleQueue(queue)
        try:
            found = []
            for _ in range(count):
                message = simple.get(timeout=30)
                message.ack()
                found.append(message.payload)
            return found
        finally:
            simple.close()


def leases() -> int:
    """Return how many connections have been lent so far."""
    return int(connections["default"].stats().acquires)


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    assert SECRET not in caplog.text
    return [one for one in caplog.records if one.name == LOGGER]


# -- when it is called -------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [object(), {"a": object()}], ids=["body", "within"])
def test_a_body_that_cannot_be_sent_fails_before_the_commit(
    now: Callable[[], list[Any]], queue: str, body: Any
) -> None:
    with pytest.raises(EncodeError):
        with transaction.atomic():
            publish_on_commit({}, queue)
            publish_on_commit(body, queue)
    assert now() == []


@pytest.mark.parametrize(
    "options, name",
    [
        ({"routing_key": "k" * 256}, "routing_key"),
        ({"routing_key": None}, "routing_key"),
        ({"headers": {"h": object()}}, "headers"),
        ({"priority": "high"}, "priority"),
        ({"message_id": 7}, "message_id"),
        ({"mandatroy": True}, "mandatory"),
        ({"declare": ["q"]}, "declare"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_argument_that_cannot_be_sent_fails_before_the_commit(
    now: Callable[[], list[Any]], queue: str, options: dict[str, Any], name: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        with transaction.atomic():
            publish_on_commit({}, queue)
            publish_on_commit({}, **{"routing_key": queue, **options})
    assert now() == []


def test_what_is_changed_after_the_call_is_not_sent_changed(
    now: Callable[[], list[Any]], queue: str, target: Queue
) -> None:
    body, headers, declare = {"n": [1]}, {"h": [1]}, [target]
    with transaction.atomic():
        publish_on_commit(body, queue, headers=headers, declare=declare)
        body["n"].append(2)
        headers.clear()
        declare.append("no queue")  # type: ignore[arg-type]
    assert now() == [{"n": [1]}]


@pytest.fixture
def marshal_() -> Iterator[None]:
    """A serializer that does not support lazy text, as that for YAML."""
    registry.register("marshal", marshal.dumps, marshal.loads, "application/x-marshal", "binary")
    yield
    registry.unregister("marshal")


@pytest.mark.parametrize("call", [publish, publish_on_commit])
@pytest.mark.parametrize("serializer", [None, "json", "pickle", "marshal"])
@pytest.mark.parametrize("where", ["body", "within"])
@pytest.mark.usefixtures("marshal_")
def test_lazy_text_is_rendered_in_the_language_of_the_caller(
    configure: Callable[..., None],
    memory_url: str,
    target: Queue,
    call: Callable[..., None],
    serializer: str | None,
    where: str,
) -> None:
    configure(SERIALIZER=serializer)
    body = language() if where == "body" else {"a": [language(), (1, language())]}
    headers = {"h": {"i": [language()]}}
    with override("en"), transaction.atomic():
        with override("de"):
            call(body, lazy(lambda: target.name, str)(), headers=headers, declare=[target])
    with kombu.Connection(memory_url) as connection:
        message = target(connection.default_channel).get(
            no_ack=True, accept=["json", "pickle", "marshal", "text/plain"]
        )
    assert message is not None
    text = "text in de"
    found = pickle.loads(bytes(message.body)) if serializer == "pickle" else message.payload
    if where == "within":
        found = [found["a"][0], *found["a"][1]]
    assert found == (text if where == "body" else [text, 1, text])
    assert message.headers["h"] == {"i": [text]}


def test_lazy_text_as_a_body_becomes_text(
    now: Callable[[], list[Any]], queue: str, memory_url: str
) -> None:
    for call in (publish, publish_on_commit):
        call(gettext_lazy("Monday"), queue)
    with kombu.Connection(memory_url) as connection:
        bound = Queue(queue, durable=False, expires=60)(connection.default_channel)
        messages = [bound.get(no_ack=True) for _ in range(2)]
    assert {(one.content_type, one.payload) for one in messages} == {("text/plain", "Monday")}


@pytest.mark.parametrize(
    "value",
    [{"a": [1, (2, {"b"}), None]}, "text", 1, object(), lazy(lambda: 1, int)(), frozenset({1})],
    ids=str,
)
def test_a_value_without_lazy_text_is_not_copied(value: Any) -> None:
    assert rendered(value) is value


def test_a_body_that_contains_itself_is_left_to_the_serializer(
    now: Callable[[], list[Any]], queue: str
) -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert rendered(circle) is circle
    with pytest.raises(EncodeError):
        publish_on_commit(circle, queue)
    publish_on_commit(circle, queue, serializer="pickle")


def test_the_properties_follow_from_the_alias(
    configure: Callable[..., None], memory_url: str, queue: str
) -> None:
    configure(SERIALIZER="pickle", COMPRESSION="gzip")
    target = Queue(queue, durable=False, expires=60)
    with transaction.atomic():
        publish_on_commit({"n": 1}, queue, declare=[target])
    with kombu.Connection(memory_url) as connection:
        message = target(connection.default_channel).get(no_ack=True, accept=["pickle"])
    assert message is not None
    assert message.content_type == "application/x-python-serialize"
    assert message.headers["compression"] == "application/x-gzip"
    assert message.payload == {"n": 1}


def test_wrong_settings_fail_at_the_call(configure: Callable[..., None]) -> None:
    configure({"default": {"URL": "memory://", "LIMTI": 1}})
    with transaction.atomic():
        with pytest.raises(ImproperlyConfigured):
            publish_on_commit({}, "q")


# -- together ----------------------------------------------------------------------------------------


def test_messages_of_one_transaction_are_sent_as_one_batch(
    amqp: Callable[[int], list[Any]], queue: str
) -> None:
    before = leases()
    with transaction.atomic():
        for n in range(100):
            publish_on_commit(n, queue)
        assert leases() == before
    assert leases() == before + 1
    assert amqp(100) == list(range(100))


def test_messages_in_separate_blocks_are_sent_as_one_batch_except_the_last(
    amqp: Callable[[int], list[Any]], queue: str
) -> None:
    before = leases()
    with transaction.atomic():
        for n in range(100):
            with transaction.atomic():
                publish_on_commit(n, queue)
    # Whether the last block was rolled back is not known until its own callback is called.
    assert leases() == before + 2
    assert amqp(100) == list(range(100))


@pytest.mark.parametrize("lost", [0, 1, 5, 9])
def test_a_savepoint_that_was_rolled_back_drops_its_own_messages_only(
    amqp: Callable[[int], list[Any]], queue: str, lost: int
) -> None:
    with transaction.atomic():
        publish_on_commit("begin", queue)
        for n in range(10):
            try:
                with transaction.atomic():
                    publish_on_commit(n, queue)
                    with transaction.atomic():
                        publish_on_commit(n + 0.5, queue)
                    if n == lost:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                pass
    expected = [one for n in range(10) if n != lost for one in (n, n + 0.5)]
    assert amqp(19) == ["begin", *expected]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_rolling_back_an_outer_savepoint_drops_all_messages_within_it(
    now: Callable[[], list[Any]], queue: str, depth: int
) -> None:
    def nest(level: int) -> None:
        with transaction.atomic():
            publish_on_commit(level, queue)
            if level < 3:
                nest(level + 1)
            publish_on_commit(-level, queue)
            if level == depth:
                raise ZeroDivisionError

    with transaction.atomic():
        publish_on_commit(0, queue)
        try:
            nest(1)
        except ZeroDivisionError:
            pass
        else:
            pytest.fail("nothing was raised")
        publish_on_commit(9, queue)
    # What raised went through all the blocks around it.
    assert now() == [0, 9]


def test_a_rollback_at_the_end_drops_only_the_last_messages(
    now: Callable[[], list[Any]], queue: str
) -> None:
    with transaction.atomic():
        publish_on_commit(1, queue)
        with pytest.raises(ZeroDivisionError):
            with transaction.atomic():
                publish_on_commit(2, queue)
                1 / 0
    assert now() == [1]


def test_another_callback_in_the_place_of_a_rolled_back_message_is_not_taken_for_a_message(
    now: Callable[[], list[Any]], queue: str
) -> None:
    seen: list[list[Any]] = []
    with transaction.atomic():
        publish_on_commit(1, queue)
        with pytest.raises(ZeroDivisionError):
            with transaction.atomic():
                publish_on_commit(2, queue)
                1 / 0
        transaction.on_commit(lambda: seen.append(now()))
        publish_on_commit(3, queue)
    assert seen == [[1]]
    assert now() == [3]


def test_a_block_without_a_savepoint_belongs_to_the_block_around_it(
    amqp: Callable[[int], list[Any]], queue: str
) -> None:
    before = leases()
    with transaction.atomic():
        for n in range(5):
            with transaction.atomic(savepoint=False):
                publish_on_commit(n, queue)
    assert leases() == before + 1
    assert amqp(5) == [0, 1, 2, 3, 4]


def test_messages_of_a_transaction_that_was_rolled_back_do_not_go_with_the_next_one(
    now: Callable[[], list[Any]], queue: str
) -> None:
    for n in range(3):
        with pytest.raises(ZeroDivisionError):
            with transaction.atomic():
                publish_on_commit(n, queue)
                1 / 0
        with transaction.atomic():
            publish_on_commit(10 + n, queue)
            publish_on_commit(20 + n, queue)
    assert now() == [10, 20, 11, 21, 12, 22]


def test_a_callback_between_two_messages_finds_the_first_sent_and_the_second_not(
    now: Callable[[], list[Any]], queue: str
) -> None:
    seen: list[list[Any]] = []
    with transaction.atomic():
        transaction.on_commit(lambda: seen.append(now()))
        publish_on_commit(1, queue)
        publish_on_commit(2, queue)
        transaction.on_commit(lambda: seen.append(now()))
        publish_on_commit(3, queue)
        transaction.on_commit(lambda: seen.append(now()))
    assert seen == [[], [1, 2], [3]]


def test_a_callback_that_fails_keeps_those_after_it_and_none_before_it(
    now: Callable[[], list[Any]], queue: str
) -> None:
    with pytest.raises(ZeroDivisionError):
        with transaction.atomic():
            publish_on_commit(1, queue)
            publish_on_commit(2, queue)
            transaction.on_commit(lambda: 1 / 0)
            publish_on_commit(3, queue)
    assert now() == [1, 2]
    with transaction.atomic():
        publish_on_commit(4, queue)
        transaction.on_commit(lambda: 1 / 0, robust=True)
        publish_on_commit(5, queue)
    assert now() == [4, 5]


def test_a_callback_may_publish_on_commit_and_does_so_at_once(
    now: Callable[[], list[Any]], queue: str
) -> None:
    with transaction.atomic():
        publish_on_commit(1, queue)
        transaction.on_commit(functools.partial(publish_on_commit, 2, queue))
        publish_on_commit(3, queue)
    assert now() == [1, 2, 3]


def test_each_database_has_its_own_row_of_messages(
    now: Callable[[], list[Any]], queue: str
) -> None:
    with transaction.atomic("other"):
        publish_on_commit("other 1", queue, db="other")
        with transaction.atomic(durable=True):
            publish_on_commit("default 1", queue)
            publish_on_commit("other 2", queue, db="other")
            publish_on_commit("default 2", queue)
        assert now() == ["default 1", "default 2"]
    assert now() == ["other 1", "other 2"]


def test_a_transaction_without_autocommit_is_refused_as_django_does(
    now: Callable[[], list[Any]], queue: str
) -> None:
    transaction.set_autocommit(False)
    try:
        with pytest.raises(TransactionManagementError):
            publish_on_commit({}, queue)
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert now() == []


@pytest.mark.parametrize(
    "database",
    [
        SimpleNamespace(),
        SimpleNamespace(run_on_commit=[]),
        SimpleNamespace(run_on_commit=[object()]),
        SimpleNamespace(run_on_commit=[(set(), len, False)]),
        SimpleNamespace(run_on_commit={}),
    ],
)
def test_no_message_is_found_if_django_stores_callbacks_in_another_way(database: Any) -> None:
    assert after_commit._last_registered(database) is None
    assert after_commit._savepoints(database) is None


@pytest.mark.parametrize("missing", ["_last_registered", "_savepoints"])
def test_each_message_is_sent_by_itself_if_the_others_are_not_known(
    amqp: Callable[[int], list[Any]], queue: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(after_commit, missing, lambda database: None)
    before = leases()
    with transaction.atomic():
        for n in range(5):
            publish_on_commit(n, queue)
    assert leases() == before + 5
    assert amqp(5) == [0, 1, 2, 3, 4]


@st.composite
def blocks(draw: st.DrawFn, depth: int = 0) -> list[Any]:
    """The steps of a block: publish, register a callback, or open another block, which may fail."""
    steps = st.sampled_from(["publish", "publish", "other alias", "callback", "block"])
    done: list[Any] = []
    for step in draw(st.lists(steps, max_size=6)):
        if step != "block":
            done.append(step)
        elif depth < 3:
            done.append((draw(st.booleans()), draw(st.booleans()), draw(blocks(depth + 1))))
    return done


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(transactions=st.lists(st.tuples(st.booleans(), blocks()), max_size=3))
def test_messages_behave_as_if_each_had_its_own_callback(
    configure: Callable[..., None], transactions: list[tuple[bool, list[Any]]]
) -> None:
    configure({"default": {"URL": "memory://"}, "other": {"URL": "memory://"}})
    happened: list[str] = []
    model: list[str] = []
    batches: list[int] = []
    numbers = itertools.count()

    def perform(savepoint: bool, fails: bool, steps: list[Any]) -> None:
        # The other database has one plain callback for each, and nothing else.
        with (
            contextlib.suppress(ZeroDivisionError),
            transaction.atomic(savepoint=savepoint),
            transaction.atomic("other", savepoint=savepoint),
        ):
            for step in steps:
                if not isinstance(step, str):
                    perform(*step)
                    continue
                name = f"{step} {next(numbers)}"
                transaction.on_commit(functools.partial(model.append, name), using="other")
                if step == "callback":
                    transaction.on_commit(functools.partial(happened.append, name))
                else:
                    alias = "other" if step == "other alias" else "default"
                    publish_on_commit(name, "q", using=alias)
            if fails:
                raise ZeroDivisionError

    def publish_together(pools: Any, messages: Any, logger: Any) -> None:
        batches.append(len(messages))
        happened.extend(one.body.decode() for one in messages)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(after_commit, "publish_prepared", publish_together)
        for fails, steps in transactions:
            perform(True, fails, steps)
    assert happened == model
    assert sum(batches) == sum(not one.startswith("callback") for one in model)


# -- what fails --------------------------------------------------------------------------------------


@pytest.mark.parametrize("robust", [False, True])
def test_a_failure_names_the_destination_and_the_calling_line(
    configure: Callable[..., None], caplog: pytest.LogCaptureFixture, robust: bool
) -> None:
    configure(URL=f"amqp://u:{SECRET}@127.0.0.1:1//", RETRY=None, OUTAGE_PATIENCE=0)
    error: BaseException | None = None
    try:
        with transaction.atomic():
            publish_on_commit(
                {"b": SECRET},
                "the-key",
                exchange="the-exchange",
                headers={"h": SECRET},
                message_id="the-id",
                robust=robust,
            )
    except OperationalError as raised:
        error = raised
    (record,) = told(caplog)
    line = record.getMessage()
    assert record.levelno == logging.ERROR
    assert record.exc_info is None
    assert "the-id" in line
    assert "alias 'default', exchange 'the-exchange', routing key 'the-key'" in line
    assert f"from {__file__}:" in line
    assert "in test_a_failure_names_the_destination" in line
    djangos = [one for one in caplog.records if one.name == "django.db.backends.base"]
    assert len(djangos) == (1 if robust else 0)
    if robust:
        assert error is None
        assert djangos[0].exc_info is not None
        error = djangos[0].exc_info[1]
    assert isinstance(error, BrokerUnreachable)
    assert error.__notes__ == [line]


def test_each_failed_message_is_logged_and_one_error_is_raised(
    configure: Callable[..., None],
    amqp_url: str,
    queue: str,
    target: Queue,
    caplog: pytest.LogCaptureFixture,
) -> None:
    configure(URL=amqp_url)
    with pytest.raises(BatchFailed) as raised:
        with transaction.atomic():
            publish_on_commit(1, queue, declare=[target], message_id="m1")
            publish_on_commit(2, f"{queue}-nowhere", mandatory=True, message_id="m2")
            publish_on_commit(3, queue, message_id="m3")
            transaction.on_commit(lambda: pytest.fail("called, after an error"))
    assert raised.value.results == {
        "m1": Outcome.ACKED,
        "m2": Outcome.RETURNED,
        "m3": Outcome.ACKED,
    }
    assert [one.getMessage() for one in told(caplog)] == raised.value.__notes__
    assert receive_all(amqp_url, target, 2) == [1, 3]


def test_robust_messages_are_not_sent_together_with_others(
    configure: Callable[..., None],
    memory_url: str,
    queue: str,
    target: Queue,
    caplog: pytest.LogCaptureFixture,
) -> None:
    away = {"URL": "amqp://127.0.0.1:1//", "RETRY": None, "ACQUIRE_TIMEOUT": 0.2}
    configure({"default": {"URL": memory_url}, "away": away})
    done: list[int] = []
    with pytest.raises(OperationalError):
        with transaction.atomic():
            publish_on_commit(1, "q", using="away", robust=True)
            publish_on_commit(2, queue, declare=[target])
            transaction.on_commit(lambda: done.append(1))
            publish_on_commit(3, queue, robust=True)
            publish_on_commit(4, "q", using="away")
            publish_on_commit(5, queue, robust=True)
    assert done == [1]
    assert receive_all(memory_url, target, 2) == [2, 3]
    assert len(told(caplog)) == 2


# -- in tests, and in async code ---------------------------------------------------------------------


def run(case: type[TestCase]) -> None:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun
    assert result.wasSuccessful(), result.errors + result.failures


def test_an_applications_tests_capture_one_callback_for_each_message(
    now: Callable[[], list[Any]], queue: str
) -> None:
    class Tests(TestCase):
        def test_it(self) -> None:
            publish_on_commit("never", queue)
            with self.captureOnCommitCallbacks(execute=True) as callbacks:
                publish_on_commit(1, queue)
                with transaction.atomic():
                    publish_on_commit(2, queue)
            assert len(callbacks) == 2
            assert now() == [1, 2]
            with self.captureOnCommitCallbacks(execute=True) as callbacks:
                publish_on_commit(3, queue)
            assert len(callbacks) == 1
            assert now() == [3]
            with self.captureOnCommitCallbacks() as callbacks:
                publish_on_commit(4, queue)
                publish_on_commit(5, queue)
            assert now() == []
            for callback in callbacks:
                callback()
            assert now() == [4, 5]

    run(Tests)
    assert now() == []


def test_a_captured_message_that_was_rolled_back_does_not_go_with_another(
    now: Callable[[], list[Any]], queue: str
) -> None:
    class Tests(TestCase):
        def test_it(self) -> None:
            with self.captureOnCommitCallbacks(execute=True):
                publish_on_commit(1, queue)
                try:
                    with transaction.atomic():
                        with self.captureOnCommitCallbacks() as kept:
                            publish_on_commit(2, queue)
                        raise ZeroDivisionError
                except ZeroDivisionError:
                    pass
            assert len(kept) == 1

    run(Tests)
    assert now() == [1]


def test_publish_on_commit_works_in_async_code(now: Callable[[], list[Any]], queue: str) -> None:
    def order() -> None:
        with transaction.atomic():
            publish_on_commit(1, queue)
            publish_on_commit(2, queue)

    async def view() -> None:
        await asyncio.gather(sync_to_async(order)(), sync_to_async(order)())

    async_to_sync(view)()
    assert now() == [1, 2, 1, 2]
