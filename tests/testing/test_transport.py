"""Everything runs over ``test://`` as it does over RabbitMQ, by the same code."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import amqp
import celery
import kombu
import pytest
from amqp.exceptions import AccessRefused, NotFound, PreconditionFailed
from kombu import Exchange, Queue

from kombu_pools_ext import Pools, configure, connections, producers
from kombu_pools_ext.broker.amqp.connection import Connection
from kombu_pools_ext.broker.amqp.publisher import allows_fast_path
from kombu_pools_ext.contrib.celery import adopt
from kombu_pools_ext.errors import BatchFailed, Outcome, PublishNacked, PublishReturned
from kombu_pools_ext.settings import SettingsError
from kombu_pools_ext.testing import Broker, ManualClock, brokers
from tests.broker.common import PATIENCE, eventually

FULL = {"x-max-length": 1, "x-overflow": "reject-publish"}


def declare(queue: Queue, name: str = "default") -> None:
    with kombu.Connection(f"test://{name}") as connection:
        queue(connection.default_channel).declare()


def read(queue: str, name: str = "default") -> list[Any]:
    """The payloads of all messages of a queue, which is empty then."""
    found = []
    with kombu.Connection(f"test://{name}") as connection:
        bound = Queue(queue)(connection.default_channel)
        while (message := bound.get(no_ack=True)) is not None:
            found.append(message.payload)
    return found


# -- kombu -------------------------------------------------------------------------------------------------------------


def test_kombu_alone_publishes_and_consumes(broker: Broker) -> None:
    queue = Queue("q", Exchange("x", "topic"), routing_key="a.#")
    got: list[Any] = []
    with kombu.Connection("test://default") as connection:
        with connection.Consumer(
            queue, callbacks=[lambda body, message: (got.append(body), message.ack())]
        ):
            connection.Producer().publish({"n": 1}, exchange="x", routing_key="a")
            connection.drain_events(timeout=PATIENCE)
        assert queue(connection.default_channel).queue_declare(passive=True).message_count == 0
    assert got == [{"n": 1}]
    assert broker.connections == []


def test_a_url_without_a_name_is_that_of_the_broker_called_default(broker: Broker) -> None:
    with kombu.Connection("test://") as connection:
        connection.connect()
        assert len(broker.connections) == 1


def test_a_large_message_comes_whole(broker: Broker) -> None:
    body = os.urandom(3_000_000)
    declare(Queue("q"))
    with kombu.Connection("test://default") as connection:
        connection.Producer().publish(body, routing_key="q")
        message = Queue("q")(connection.default_channel).get()
        assert message is not None
        assert message.body == body
        message.ack()


def test_what_a_consumer_has_not_acknowledged_is_the_next_ones(broker: Broker) -> None:
    declare(Queue("q"))
    with kombu.Connection("test://default") as connection:
        connection.Producer().publish("x", routing_key="q")
        message = Queue("q")(connection.default_channel).get()
        assert message is not None
        assert not message.delivery_info["redelivered"]
    with kombu.Connection("test://default") as connection:
        message = Queue("q")(connection.default_channel).get()
        assert message is not None
        assert message.delivery_info["redelivered"]


def test_a_prefetch_count_bounds_what_a_consumer_has(broker: Broker) -> None:
    declare(Queue("q"))
    got: list[Any] = []
    with kombu.Connection("test://default") as connection:
        for number in range(3):
            connection.Producer().publish(number, routing_key="q")
        consumer = connection.Consumer(
            Queue("q"), callbacks=[lambda body, message: got.append(message)], prefetch_count=2
        )
        with consumer:
            connection.drain_events(timeout=PATIENCE)
            connection.drain_events(timeout=PATIENCE)
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0)
            got[0].ack()
            connection.drain_events(timeout=PATIENCE)
    assert [message.payload for message in got] == [0, 1, 2]


def test_a_closed_channel_tells_why(broker: Broker) -> None:
    with kombu.Connection("test://default") as connection:
        for error, do in (
            (NotFound, lambda channel: Queue("none")(channel).queue_declare(passive=True)),
            (AccessRefused, lambda channel: channel.exchange_declare("amq.mine", "direct")),
            (PreconditionFailed, lambda channel: channel.exchange_declare("amq.topic", "direct")),
        ):
            with pytest.raises(error) as caught:
                do(connection.channel())
            assert caught.value.method_name in ("Queue.declare", "Exchange.declare")


def test_what_is_not_modelled_raises_in_the_thread_that_asks_for_it(broker: Broker) -> None:
    with kombu.Connection("test://default") as connection:
        channel = connection.channel()
        with pytest.raises(NotImplementedError, match="'x-strange'"):
            Queue("q", queue_arguments={"x-strange": 1})(channel).declare()
    with kombu.Connection("test://default") as connection:
        channel = connection.channel()
        with pytest.raises(NotImplementedError, match="transactions"):
            channel.tx_select()
    with kombu.Connection("test://default") as connection:
        declare(Queue("q"))
        with pytest.raises(NotImplementedError, match="direct reply-to"):
            connection.Producer().publish(
                "x", routing_key="q", reply_to="amq.rabbitmq.reply-to", retry=False
            )


# -- the pools ---------------------------------------------------------------------------------------------------------


def test_a_pooled_connection_is_the_same_as_one_to_rabbitmq(aliases: Pools) -> None:
    with connections["default"].acquire() as connection:
        established = connection.connection
        assert type(established) is Connection
        assert allows_fast_path(established)
        assert established.server_properties["product"] == "RabbitMQ"


@pytest.mark.parametrize("over", ["auto", "shared", "leased"])
def test_each_road_and_each_outcome(broker: Broker, over: str) -> None:
    aliases = configure(default={"URL": "test://default", "PUBLISH_OVER": over})
    declare(Queue("full", queue_arguments=FULL))
    with pytest.raises(PublishReturned, match="312 NO_ROUTE"):
        aliases.publish({"n": 0}, routing_key="none")
    with pytest.raises(NotFound, match="no exchange 'none' in vhost '/'"):
        aliases.publish({"n": 0}, exchange="none", routing_key="k")
    aliases.publish({"n": 1}, routing_key="full")
    with pytest.raises(PublishNacked):
        aliases.publish({"n": 2}, routing_key="full", retry=False)
    assert read("full") == [{"n": 1}]
    future = aliases.submit({"n": 3}, routing_key="full")
    future.result(PATIENCE)
    assert read("full") == [{"n": 3}]


def test_each_alias_has_a_broker_of_its_own(aliases: Pools) -> None:
    aliases.publish("x", routing_key="q", declare=[Queue("q")])
    with pytest.raises(PublishReturned):
        aliases.publish("x", routing_key="q", using="audit")
    assert set(brokers["default"].vhost().queues) == {"q"}
    assert set(brokers["audit"].vhost().queues) == set()


@pytest.mark.parametrize(
    "options, error",
    [
        ({"headers": {"id": uuid.uuid4()}}, TypeError),
        ({"routing_key": "k" * 300}, ValueError),
        ({"priority": "7"}, TypeError),
        ({"priority": 256}, ValueError),
        ({"headers": {"k" * 300: 1}}, ValueError),
    ],
)
def test_what_cannot_be_encoded_is_refused_as_over_the_wire(
    aliases: Pools, options: dict[str, Any], error: type[Exception]
) -> None:
    declare(Queue("q"))
    with pytest.raises(error, match="publish: "):
        aliases.publish("x", **{"routing_key": "q", **options})
    assert read("q") == []


def test_kombu_alone_fails_as_over_the_wire(broker: Broker) -> None:
    with kombu.Connection("test://default") as connection:
        with pytest.raises(amqp.exceptions.FrameSyntaxError, match="UUID"):
            connection.Producer().publish("x", routing_key="q", headers={"id": uuid.uuid4()})


def test_a_batch(aliases: Pools) -> None:
    declare(Queue("q"))
    with producers["default"].acquire() as producer:
        with producer.batch() as batch:
            for number in range(500):
                producer.publish(number, routing_key="q")
        assert set(batch.results.values()) == {Outcome.ACKED}
        with pytest.raises(BatchFailed):
            with producer.batch() as batch:
                producer.publish("x", routing_key="none")
    assert read("q") == list(range(500))


def test_coroutines(aliases: Pools) -> None:
    declare(Queue("q"))

    async def main() -> None:
        await asyncio.gather(*[aliases.apublish(n, routing_key="q") for n in range(50)])

    asyncio.run(main())
    assert sorted(read("q")) == list(range(50))


@pytest.mark.threads
def test_threads(aliases: Pools) -> None:
    declare(Queue("q"))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: aliases.publish(n, routing_key="q"), range(400)))
    assert sorted(read("q")) == list(range(400))


def test_an_unconfirmed_message_is_there_when_the_publish_returns(broker: Broker) -> None:
    aliases = configure(default={"URL": "test://default", "CONFIRM": False})
    declare(Queue("q"))
    aliases.publish("x", routing_key="q")
    assert len(broker.vhost().queues["q"]) == 1


def test_an_idle_connection_lives_on_by_its_heartbeats(aliases: Pools) -> None:
    with connections["default"].acquire() as connection:
        session = connection.item.pooled_session
        frames = connection.connection.bytes_recv
        session.beat()
        assert session.check()
        assert connection.connection.bytes_recv == frames + 1
        assert session.check(thorough=True)


def test_a_connection_that_nobody_has_any_more_is_gone_at_the_broker(broker: Broker) -> None:
    connection: Any = kombu.Connection("test://default")
    connection.connect()
    assert len(broker.connections) == 1
    with pytest.warns(ResourceWarning):  # noqa: PT031  # the last reference goes, and who finds out is the collector
        del connection
        gc.collect()
    assert broker.connections == []


def test_a_signal_handler_may_publish_within_a_publish(broker: Broker) -> None:
    """The broker's own lock is never waited for by the thread that has it."""
    with kombu.Connection("test://default") as connection:
        producer = connection.Producer()
        declare(Queue("q"))
        done: list[int] = []

        def within() -> None:
            producer.publish("inner", routing_key="q")
            done.append(len(broker.vhost().queues["q"]))

        producer.channel  # a property that opens it
        broker.do(within)
        assert done == [0]
        assert len(broker.vhost().queues["q"]) == 1


def test_celery(aliases: Pools) -> None:
    # Whatever its own broker is: no worker is to get the task.
    app = celery.Celery("shop", broker="amqp://elsewhere//", set_as_current=False)

    @app.task(name="add", shared=False)
    def add(a: int, b: int) -> int:
        return a + b

    adopt(app, using="default")
    add.delay(3, b=4)
    ((args, kwargs, _),) = read("celery")
    assert (args, kwargs) == ([3], {"b": 4})


def test_a_broker_in_memory_is_no_broker_elsewhere() -> None:
    with pytest.raises(SettingsError, match="amqp"):
        configure(default={"URL": ["test://one", "amqp://one//"]})


def test_kombu_fails_over_from_one_to_the_next(broker: Broker) -> None:
    aliases = configure(default={"URL": ["test://default", "test://other"]})
    aliases.publish("x", routing_key="q", declare=[Queue("q")])
    assert read("q") == ["x"]


# -- time --------------------------------------------------------------------------------------------------------------


def test_a_consumer_of_dead_letters_gets_them_when_their_time_comes(
    broker: Broker, clock: ManualClock, aliases: Pools
) -> None:
    dying = {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "dead",
        "x-message-ttl": 9000,
    }
    declare(Queue("dead"))
    declare(Queue("q", queue_arguments=dying))
    aliases.publish("x", routing_key="q")
    got: list[Any] = []
    with kombu.Connection("test://default") as connection:
        with connection.Consumer(
            Queue("dead"), callbacks=[lambda body, _: got.append(body)], no_ack=True
        ):
            clock.advance(8.9)
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0)
            clock.advance(0.2)
            connection.drain_events(timeout=PATIENCE)
    assert got == ["x"]


def test_with_the_systems_clock_nobody_has_to_ask(aliases: Pools) -> None:
    dying = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead", "x-message-ttl": 20}
    declare(Queue("dead"), "audit")
    declare(Queue("q", queue_arguments=dying), "audit")
    got: list[Any] = []
    with kombu.Connection("test://audit") as connection:
        with connection.Consumer(
            Queue("dead"), callbacks=[lambda body, _: got.append(body)], no_ack=True
        ):
            aliases.publish("x", routing_key="q", using="audit")
            connection.drain_events(timeout=PATIENCE)
    assert got == ["x"]


# -- forks -------------------------------------------------------------------------------------------------------------


@pytest.mark.forks
@pytest.mark.threads
def test_a_child_has_what_was_declared_and_connections_of_its_own(
    broker: Broker, aliases: Pools
) -> None:
    declare(Queue("q"))
    aliases.publish("parent", routing_key="q")
    child = os.fork()
    if not child:
        try:
            aliases.publish("child", routing_key="q")
            os._exit(0 if read("q") == ["parent", "child"] else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    aliases.publish("after", routing_key="q")
    assert read("q") == ["parent", "after"]


@pytest.mark.forks
@pytest.mark.threads
def test_a_fork_waits_for_whoever_is_in_the_middle_of_something(broker: Broker) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def long() -> None:
        begun.set()
        may_end.wait(PATIENCE)
        broker.vhost().queue_declare("whole")

    thread = threading.Thread(target=broker.do, args=(long,))
    thread.start()
    begun.wait(PATIENCE)
    threading.Timer(0.05, may_end.set).start()
    child = os.fork()
    if not child:
        os._exit(0 if "whole" in broker.vhost().queues else 1)
    _, status = os.waitpid(child, 0)
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0


# -- what it is not ----------------------------------------------------------------------------------------------------


def test_it_opens_nothing_that_leads_out_of_the_process(
    aliases: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite that forbids sockets can use it."""

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a socket")

    declare(Queue("q"))
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    monkeypatch.setattr(socket, "socketpair", forbidden)
    monkeypatch.setattr(socket, "socket", type("Socket", (socket.socket,), {"connect": forbidden}))
    aliases.publish("x", routing_key="q")
    assert read("q") == ["x"]


def test_applications_do_not_import_it() -> None:
    program = (
        "import sys, kombu_pools_ext, kombu_pools_ext.control, django_app, flask_ext\n"
        "from kombu_pools_ext import configure\n"
        "configure(default='amqp://localhost//')\n"
        "sys.exit(any('.testing' in name for name in sys.modules if name.startswith('kombu_pools')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_what_it_says_is_logged_by_nobody(aliases: Pools, caplog: pytest.LogCaptureFixture) -> None:
    aliases.publish("x", routing_key="q", declare=[Queue("q")])
    assert caplog.records == []


def test_nothing_stays_open(aliases: Pools, broker: Broker) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(20):
        declare(Queue("q"))
    eventually(lambda: descriptors() == before)
    assert broker.connections == []
