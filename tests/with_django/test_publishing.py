from __future__ import annotations

import socket
import time
import traceback
import unittest
from collections.abc import Callable

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.test import Client, TestCase, override_settings
from kombu import Queue
from kombu.exceptions import EncodeError, LimitExceeded, OperationalError

from django_app import connections, publish, publish_on_commit
from kombu_pools_ext.errors import UnknownAlias
from tests.with_django.conftest import receive

SECRET = "s3cr3t-word"
#: Seconds within which a short wait is over on a busy machine: less than ACQUIRE_TIMEOUT is by default.
IN_TIME = 4.5


def empty(url: str, queue: str) -> bool:
    try:
        receive_now(url, queue)
    except Exception:
        return True
    return False


def receive_now(url: str, queue: str) -> object:
    import kombu

    with kombu.Connection(url) as connection:
        return connection.SimpleQueue(queue).get(block=False)


def test_publish(configure: Callable[..., None], memory_url: str, queue: str) -> None:
    configure()
    publish({"n": 1}, queue, declare=[Queue(queue)])
    publish({"n": 2}, routing_key=queue, exchange="", using="default", headers={"a": 1})
    assert [receive(memory_url, queue) for _ in range(2)] == [{"n": 1}, {"n": 2}]
    stats = connections["default"].stats()
    assert (stats.opened, stats.lent) == (1, 0)


def test_a_view_publishes_to_memory(
    configure: Callable[..., None], memory_url: str, queue: str
) -> None:
    configure()
    assert Client().get(f"/publishes/{queue}/").content == b"published"
    assert receive(memory_url, queue) == {"from": "publish"}


def test_a_view_publishes_to_rabbitmq(
    configure: Callable[..., None], amqp_url: str, queue: str
) -> None:
    configure(URL=amqp_url, LIMIT=2)
    assert Client().get(f"/publishes/{queue}/").content == b"published"
    assert Client().get(f"/commits/{queue}/").content == b"committed"
    with connections["default"].acquire() as connection:
        simple = connection.SimpleQueue(Queue(queue, auto_delete=True))
        bodies = []
        for _ in range(2):
            message = simple.get(timeout=30)
            message.ack()
            bodies.append(message.decode())
        simple.close()
    assert bodies == [{"from": "publish"}, {"from": "commit"}]


def test_a_view_publishes_to_redis(
    configure: Callable[..., None], redis_url: str, queue: str
) -> None:
    configure(URL=redis_url)
    assert Client().get(f"/publishes/{queue}/").content == b"published"
    assert receive(redis_url, queue) == {"from": "publish"}


def test_publish_checks_its_arguments(configure: Callable[..., None], queue: str) -> None:
    configure()
    for wrong in ({}, {"exchange": ""}, {"routing_key": "r" * 256}):
        with pytest.raises(ValueError, match=r"^publish: "):
            publish({}, **wrong)
    with pytest.raises(TypeError, match="unknown keyword 'queue'; did you mean 'routing_key'"):
        publish({}, queue=queue)
    assert connections["default"].stats().opened == 0
    publish({}, Queue(queue), declare=Queue(queue))


@pytest.mark.parametrize("call", [publish, publish_on_commit])
def test_an_unknown_alias(configure: Callable[..., None], call: Callable[..., None]) -> None:
    configure()
    with transaction.atomic():
        with pytest.raises(UnknownAlias, match="did you mean 'default'"):
            call({}, "q", using="defaul")


@pytest.mark.parametrize("call", [publish, publish_on_commit])
def test_wrong_settings(call: Callable[..., None]) -> None:
    with override_settings(KOMBU_POOLS={"default": {}}):
        with transaction.atomic():
            with pytest.raises(ImproperlyConfigured, match="'URL'"):
                call({}, "q")


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_a_broker_that_cannot_be_reached(configure: Callable[..., None], scheme: str) -> None:
    configure(URL=f"{scheme}://u:{SECRET}@127.0.0.1:1/0", ACQUIRE_TIMEOUT=2)
    began = time.monotonic()
    with pytest.raises(OperationalError) as told:
        publish({}, "q")
    assert time.monotonic() - began < IN_TIME
    assert "refused" in str(told.value)
    assert told.value.__cause__ is not None
    assert SECRET not in "".join(traceback.format_exception(told.value))


def test_a_broker_that_never_answers_ends_in_time(configure: Callable[..., None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"amqp://u:{SECRET}@127.0.0.1:{listener.getsockname()[1]}//"
        configure(URL=url, ACQUIRE_TIMEOUT=0.3)
        began = time.monotonic()
        with pytest.raises(LimitExceeded) as told:
            publish({}, "q")
        assert time.monotonic() - began < IN_TIME
        assert SECRET not in str(told.value)


def test_a_body_that_cannot_be_serialized(configure: Callable[..., None]) -> None:
    configure()
    with pytest.raises(EncodeError):
        publish(object(), "q")
    stats = connections["default"].stats()
    assert (stats.idle, stats.lent) == (1, 0)


def test_a_publish_waits_no_longer_than_setting_or_argument(
    configure: Callable[..., None],
) -> None:
    configure(LIMIT=1, ACQUIRE_TIMEOUT=0.1)
    with connections["default"].acquire():
        began = time.monotonic()
        with pytest.raises(LimitExceeded):
            publish({}, "q")
        assert 0.05 < time.monotonic() - began < IN_TIME
        with pytest.raises(LimitExceeded):
            publish({}, "q", acquire_timeout=0)


def test_a_message_is_published_after_the_commit(
    configure: Callable[..., None], memory_url: str, queue: str
) -> None:
    configure()
    with transaction.atomic():
        publish_on_commit({"n": 1}, queue, declare=[Queue(queue)], headers={"a": 1})
        with transaction.atomic():
            publish_on_commit({"n": 2}, queue)
        assert connections["default"].stats().acquires == 0
    assert [receive(memory_url, queue) for _ in range(2)] == [{"n": 1}, {"n": 2}]


def test_a_message_is_not_published_after_a_rollback(
    configure: Callable[..., None], memory_url: str, queue: str
) -> None:
    configure()
    publish({"n": 0}, queue, declare=[Queue(queue)])
    with transaction.atomic():
        publish_on_commit({"n": 1}, queue)
        with pytest.raises(ZeroDivisionError):
            with transaction.atomic():
                publish_on_commit({"n": 2}, queue)
                1 / 0
    with pytest.raises(ZeroDivisionError):
        with transaction.atomic():
            publish_on_commit({"n": 3}, queue)
            1 / 0
    assert [receive(memory_url, queue) for _ in range(2)] == [{"n": 0}, {"n": 1}]
    assert empty(memory_url, queue)


def test_outside_a_transaction_a_message_is_published_at_once(
    configure: Callable[..., None], memory_url: str, queue: str
) -> None:
    configure()
    publish_on_commit({"n": 1}, queue, declare=[Queue(queue)])
    assert receive(memory_url, queue) == {"n": 1}


def test_each_database_has_its_own_commit(
    configure: Callable[..., None], memory_url: str, queue: str
) -> None:
    configure()
    with transaction.atomic("other"):
        publish_on_commit({"db": "other"}, queue, declare=[Queue(queue)], db="other")
        publish_on_commit({"db": "default"}, queue, declare=[Queue(queue)])
        assert receive(memory_url, queue) == {"db": "default"}
        assert empty(memory_url, queue)
    assert receive(memory_url, queue) == {"db": "other"}


def test_a_failure_after_the_commit_is_raised_where_the_transaction_ends(
    configure: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    configure(URL="amqp://127.0.0.1:1//", RETRY=None, OUTAGE_PATIENCE=0)
    with pytest.raises(OperationalError):
        with transaction.atomic():
            publish_on_commit({"n": 1}, "q")
    with transaction.atomic():
        publish_on_commit({"n": 1}, "q", robust=True)
    assert "Error calling AfterCommit.publish_after_commit in on_commit()" in caplog.text


def test_an_applications_own_tests_can_run_the_callbacks(
    configure: Callable[..., None], memory_url: str, queue: str
) -> None:
    configure()

    class Tests(TestCase):
        def test_it(self) -> None:
            with self.captureOnCommitCallbacks(execute=True) as callbacks:
                Client().get(f"/commits/{queue}/")
            assert len(callbacks) == 1

    result = unittest.TestResult()
    unittest.TestSuite([Tests("test_it")]).run(result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures
    assert receive(memory_url, queue) == {"from": "commit"}
