"""An application's classes may have methods and attributes of any name: ours do not hide them."""

from __future__ import annotations

import inspect
import os
import threading
from typing import Any

import kombu
import pytest

from kombu_pools_ext.broker import connection as open_connection
from kombu_pools_ext.broker.connections import ConnectionPool
from kombu_pools_ext.broker.producers import ProducerPool
from tests.broker.common import PATIENCE


class Producer(kombu.Producer):
    pool_name = "outbox"
    session = "the producer's"

    def publish_once(self, body: Any, key: str) -> Any:
        return self.publish(body, routing_key=key)

    def note(self, text: str) -> str:
        return text


class Connection(kombu.Connection):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.session = {"tenant": 7}


def test_a_producer_class_keeps_its_methods_and_attributes(queue: str, amqp_url: str) -> None:
    connections = ConnectionPool(kombu.Connection(amqp_url), 1)
    with ProducerPool(connections, 1, Producer=Producer).acquire(timeout=PATIENCE) as producer:
        producer.publish_once("x", queue)
        assert producer.note("text") == "text"
        assert producer.pool_name == "outbox"
        assert producer.session == "the producer's"
        producer.pool_name = "another"
        assert producer.pool_name == "another"
    connections.force_close_all()


def test_a_connection_class_keeps_its_session(queue: str, amqp_url: str) -> None:
    connections = ConnectionPool(Connection(amqp_url), 1)
    with ProducerPool(connections, 1).acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key=queue)
        assert producer.connection.session == {"tenant": 7}
    with connections.acquire(timeout=PATIENCE) as connection:
        assert connection.session == {"tenant": 7}
    connections.force_close_all()


def test_a_connection_of_kombus_pool_is_given_back_as_it_was() -> None:
    kombus = kombu.Connection("memory://names").Pool(2)
    connection = kombus.acquire()
    connection.session = {"tenant": 7}
    before = dict(vars(connection))
    connection.release()
    with ProducerPool(kombus, 2).acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key="q")
    connection = kombus.acquire()
    assert connection.session == {"tenant": 7}
    assert not [name for name in set(vars(connection)) - set(before) if "session" in name]


@pytest.mark.parametrize(
    "given, passed_on",
    [
        ({}, {"timeout": None, "confirm_timeout": 10}),
        ({"confirm_timeout": 3}, {"timeout": None, "confirm_timeout": 3}),
        ({"timeout": 3, "confirm_timeout": 7}, {"timeout": 3, "confirm_timeout": 7}),
    ],
)
def test_over_kombus_own_pool_the_time_outs_are_passed_on_to_kombu(
    given: dict[str, Any], passed_on: dict[str, Any]
) -> None:
    seen: dict[str, Any] = {}

    class Seeing(kombu.Producer):
        def _publish(self, *args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(kombu.Producer._publish).bind(self, *args, **kwargs)
            bound.apply_defaults()
            seen.update(bound.arguments)

    kombus = kombu.Connection("memory://timeouts").Pool(1)
    with ProducerPool(kombus, 1, Producer=Seeing).acquire(timeout=PATIENCE) as producer:
        producer.publish("x", routing_key="q", **given)
    for name, value in passed_on.items():
        assert seen[name] == (value if value is None else pytest.approx(value, abs=0.5)), name


@pytest.mark.forks
def test_a_fork_while_a_connection_gets_its_session_leaves_no_lock_behind(
    monkeypatch: pytest.MonkeyPatch, amqp_url: str
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    parent = os.getpid()
    plain = open_connection.PlainSession

    def slowly(connection: Any) -> Any:
        if os.getpid() == parent:
            begun.set()
            assert go_on.wait(PATIENCE)
        return plain(connection)

    monkeypatch.setattr(open_connection, "PlainSession", slowly)
    pool = ConnectionPool(kombu.Connection(amqp_url), 1)
    opening = threading.Thread(target=lambda: pool.acquire(timeout=PATIENCE).release(), daemon=True)
    opening.start()
    assert begun.wait(PATIENCE)

    child = os.fork()
    if not child:
        code = 1
        try:
            with pool.acquire(timeout=PATIENCE / 3) as connection:
                code = 0 if connection.connected else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    go_on.set()
    opening.join(PATIENCE)
    assert os.waitstatus_to_exitcode(status) == 0
    pool.force_close_all()
