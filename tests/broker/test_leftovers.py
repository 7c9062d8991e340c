"""A lease leaves nothing behind: what was taken goes back, what was opened is closed, and nobody's code runs later."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import amqp
import kombu
import pytest

from kombu_pools_ext import pools
from kombu_pools_ext.broker import left, leftovers
from kombu_pools_ext.broker.amqp import leftovers as amqp_leftovers
from kombu_pools_ext.engine import PoolOptions
from kombu_pools_ext.errors import PublishReturned
from kombu_pools_ext.settings import PoolSettings
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import AMQP, Node, confirming
from tests.brokers import PrivateRedis

#: Every connection is checked before it is lent, however fresh.
ALWAYS = PoolOptions(check_after=0.0)


@pytest.fixture(params=["memory", *AMQP, pytest.param("redis", marks=pytest.mark.redis)])
def any_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kind of broker in turn."""
    if request.param == "amqps":
        node: Node = request.getfixturevalue("node")
        monkeypatch.setenv("SSL_CERT_FILE", str(node.certificate))
        return node.tls_url
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def pool(any_url: str) -> Iterator[pools.ConnectionPool]:
    pool = pools.ConnectionPool(confirming(any_url), limit=2, options=ALWAYS)
    yield pool
    pool.force_close_all()


@pytest.fixture
def amqp_pool(amqp_url: str) -> Iterator[pools.ConnectionPool]:
    pool = pools.ConnectionPool(confirming(amqp_url), limit=2, options=ALWAYS)
    yield pool
    pool.force_close_all()


@pytest.fixture
def box(any_url: str, inbox: Callable[[str], Inbox]) -> Inbox:
    """A queue with three messages."""
    box = inbox(any_url)
    fill(box, 3)
    return box


def fill(box: Inbox, count: int) -> None:
    with kombu.Connection(box.url) as connection:
        producer = connection.Producer()
        for number in range(count):
            producer.publish(number, routing_key=box.name)


def entity(box: Inbox) -> kombu.Queue:
    return kombu.Queue(box.name, durable=False)


# -- what may be done on a connection, so that messages are taken and not answered -----------------------


def get(connection: Any, box: Inbox) -> None:
    message = entity(box)(connection.default_channel).get()
    assert message is not None


def consume(connection: Any, box: Inbox) -> None:
    taken: list[Any] = []
    with connection.Consumer([entity(box)], on_message=taken.append):
        while not taken:
            connection.drain_events(timeout=PATIENCE)


def consume_on(connection: Any, box: Inbox) -> None:
    """As before, and the consumer is left, too."""
    taken: list[Any] = []
    consumer = kombu.Consumer(connection, [entity(box)], on_message=taken.append)
    consumer.consume()
    while not taken:
        connection.drain_events(timeout=PATIENCE)


def channel_of_its_own(connection: Any, box: Inbox) -> None:
    message = entity(box)(connection.channel()).get()
    assert message is not None


def simple_queue(connection: Any, box: Inbox) -> None:
    connection.SimpleQueue(entity(box)).get(timeout=PATIENCE)


TAKING = [get, consume, consume_on, channel_of_its_own]


# -- how a lease may end -----------------------------------------------------------------------------


def release(pool: pools.ConnectionPool, lease: Any) -> None:
    lease.release()


def application_error(pool: pools.ConnectionPool, lease: Any) -> None:
    with pytest.raises(ValueError, match="work"), lease:
        raise ValueError("the work failed")


def interrupt(pool: pools.ConnectionPool, lease: Any) -> None:
    with pytest.raises(KeyboardInterrupt), lease:
        raise KeyboardInterrupt


def replace(pool: pools.ConnectionPool, lease: Any) -> None:
    pool.replace(lease)


def drop(pool: pools.ConnectionPool, lease: Any) -> None:
    """Whoever calls it holds the last reference."""


def drain(pool: pools.ConnectionPool, lease: Any) -> None:
    pool.force_close_all(close_pool=False)
    lease.release()


def close(pool: pools.ConnectionPool, lease: Any) -> None:
    pool.force_close_all()
    lease.release()


ENDING = [release, application_error, interrupt, replace, drop, drain, close]


@pytest.mark.parametrize("end", [one for one in ENDING if one is not drop])
def test_a_simple_queue_that_was_not_closed_ends_too(
    pool: pools.ConnectionPool,
    box: Inbox,
    end: Callable[[pools.ConnectionPool, Any], None],
) -> None:
    lease = pool.acquire(timeout=PATIENCE)
    # It holds the lease, and the channel holds it: to drop both is no release.
    simple_queue(lease, box)
    end(pool, lease)
    assert sorted(box.bodies(3)) == [0, 1, 2]


@pytest.mark.parametrize("end", ENDING, ids=lambda end: end.__name__)
@pytest.mark.parametrize("take", TAKING, ids=lambda take: take.__name__)
def test_what_was_taken_is_the_next_consumers_however_the_lease_ends(
    pool: pools.ConnectionPool,
    box: Inbox,
    take: Callable[[Any, Inbox], None],
    end: Callable[[pools.ConnectionPool, Any], None],
) -> None:
    leases = [pool.acquire(timeout=PATIENCE)]
    take(leases[0], box)
    end(pool, leases.pop())
    gc.collect()
    assert sorted(box.bodies(3)) == [0, 1, 2]


@pytest.mark.parametrize("end", ["release", "replace"])
@pytest.mark.parametrize("take", TAKING, ids=lambda take: take.__name__)
def test_so_it_is_for_the_connection_of_a_producer(
    pool: pools.ConnectionPool, box: Inbox, take: Callable[[Any, Inbox], None], end: str
) -> None:
    producers = pools.ProducerPool(pool)
    producer = producers.acquire(timeout=PATIENCE)
    producer.publish(3, routing_key=box.name)
    take(producer.connection, box)
    getattr(producers, end)(producer)
    # The next one publishes on a channel that is open.
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish(4, routing_key=box.name)
    assert sorted(box.bodies(5)) == [0, 1, 2, 3, 4]


def test_what_was_answered_stays_answered(pool: pools.ConnectionPool, box: Inbox) -> None:
    with pool.acquire(timeout=PATIENCE) as connection:
        bound = entity(box)(connection.default_channel)
        bound.get().ack()
        bound.get().reject()
        bound.get().requeue()
    with pool.acquire(timeout=PATIENCE) as connection:
        bound = entity(box)(connection.default_channel)
        assert bound.get(no_ack=True).payload == 2
        assert bound.get() is None
    assert pool.stats().closed == {}


def test_a_borrower_who_leaves_nothing_keeps_connection_and_channel(
    amqp_pool: pools.ConnectionPool, queue: str
) -> None:
    producers = pools.ProducerPool(amqp_pool)
    channels = set()
    for _ in range(3):
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish("x", routing_key=queue)
            channels.add(producer.channel)
        with amqp_pool.acquire(timeout=PATIENCE) as connection:
            channel = connection.default_channel
            name = channel.queue_declare("", auto_delete=True).queue
            channel.basic_publish(amqp.Message("x"), routing_key=name)
            channel.basic_ack(channel.basic_get(name).delivery_tag)
            connection.channel().close()
            channels.add(channel)
    assert len(channels) == 1
    assert amqp_pool.stats().opened == 1


def test_a_connection_is_looked_through_only_after_a_lease_that_may_have_left_something(
    pool: pools.ConnectionPool, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    producers = pools.ProducerPool(pool)
    looked: list[Any] = []
    tidy = leftovers.tidy
    monkeypatch.setattr(leftovers, "tidy", lambda *args: looked.append(args) or tidy(*args))
    for number in range(4):
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish("x", routing_key=queue)
        with pool.acquire(timeout=PATIENCE) as connection:
            connection.default_channel
        if number == 0:
            # The channel was new.
            assert looked
            looked.clear()
    assert looked == []


PROGRAM = """
import json, sys
import kombu
from kombu_pools_ext import pools

url, name = json.loads(sys.argv[1])
lease = pools.connections[url].acquire(timeout=30)
assert kombu.Queue(name, durable=False)(lease.default_channel).get() is not None
"""


@pytest.mark.parametrize(
    "any_url", [*AMQP, pytest.param("redis", marks=pytest.mark.redis)], indirect=True
)
def test_the_end_of_the_process_gives_back_what_it_took(
    box: Inbox, any_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    subprocess.run(
        [sys.executable, str(path), json.dumps([any_url, box.name])], check=True, timeout=PATIENCE
    )
    assert sorted(box.bodies(3)) == [0, 1, 2]


# -- what was opened ------------------------------------------------------------------------------


def test_channels_end_with_their_lease(amqp_url: str) -> None:
    pool = pools.ConnectionPool(
        kombu.Connection(amqp_url, transport_options={"channel_max": 4}), limit=1
    )
    for _ in range(12):
        with pool.acquire(timeout=PATIENCE) as connection:
            connection.default_channel.queue_declare("", exclusive=True, auto_delete=True)
            connection.channel()
            connection.channel()
            assert len(connection.connection.channels) == 4
    assert pool.stats().opened == 1
    pool.force_close_all()


def test_so_many_channels_that_a_new_connection_is_faster_cost_the_connection(
    amqp_pool: pools.ConnectionPool,
) -> None:
    with amqp_pool.acquire(timeout=PATIENCE) as connection:
        for _ in range(amqp_leftovers.MOST_CHANNELS + 1):
            connection.channel()
    eventually(lambda: amqp_pool.stats().closed == {"leftovers": 1})


def test_an_exclusive_queue_ends_with_its_lease(amqp_pool: pools.ConnectionPool) -> None:
    with amqp_pool.acquire(timeout=PATIENCE) as connection:
        name = connection.default_channel.queue_declare("", exclusive=True).queue
    with amqp_pool.acquire(timeout=PATIENCE) as connection, pytest.raises(amqp.NotFound):
        connection.channel().queue_declare(name, passive=True)


@pytest.mark.parametrize("alter", ["prefetch", "transaction", "confirms"])
def test_a_channel_whose_mode_was_changed_is_not_lent_again(
    amqp_url: str, alter: str, inbox: Callable[[str], Inbox]
) -> None:
    box = inbox(amqp_url)
    pool = pools.ConnectionPool(kombu.Connection(amqp_url), limit=1)
    producers = pools.ProducerPool(pool)
    with pool.acquire(timeout=PATIENCE) as connection:
        channel = connection.default_channel
        {
            "prefetch": lambda: channel.basic_qos(0, 1, False),
            "transaction": channel.tx_select,
            "confirms": channel.confirm_select,
        }[alter]()
    with producers.acquire(timeout=PATIENCE) as producer:
        assert producer.channel is not channel
        producer.publish("arrives", routing_key=box.name)
    assert pool.stats().opened == 1
    assert box.bodies(1) == ["arrives"]
    pool.force_close_all()


@pytest.mark.parametrize(
    "name, value",
    [
        ("auto_decode", False),
        ("prepare_message", None),
        ("message_to_python", None),
        ("basic_publish", lambda *args, **kwargs: "swallowed"),
        ("no_ack_consumers", {"mine"}),
        ("tenant", "of a request"),
    ],
)
def test_what_is_set_on_the_default_channel_is_for_one_lease(
    amqp_pool: pools.ConnectionPool, name: str, value: Any
) -> None:
    with amqp_pool.acquire(timeout=PATIENCE) as connection:
        first = connection.default_channel
        setattr(first, name, value)
    with amqp_pool.acquire(timeout=PATIENCE) as connection:
        second = connection.default_channel
        assert second is not first
        assert getattr(second, name, None) is not value
        assert (name in vars(second)) == (name in ("basic_publish", "no_ack_consumers"))
        assert second.auto_decode
    assert amqp_pool.stats().opened == 1


def test_what_is_deleted_from_the_default_channel_is_there_for_the_next(
    amqp_pool: pools.ConnectionPool,
) -> None:
    with amqp_pool.acquire(timeout=PATIENCE) as connection:
        del connection.default_channel.basic_publish
    with amqp_pool.acquire(timeout=PATIENCE) as connection:
        assert "basic_publish" in vars(connection.default_channel)
    assert amqp_pool.stats().opened == 1


@pytest.mark.parametrize("used", [True, False], ids=["channel", "no channel"])
@pytest.mark.parametrize("confirm", [True, False], ids=["confirmed", "not confirmed"])
def test_confirms_that_a_borrower_turns_off_or_on_are_as_configured_for_the_next(
    amqp_url: str, confirm: bool, used: bool
) -> None:
    settings = PoolSettings(url=amqp_url, limit=1, confirm=confirm, mandatory=confirm)
    producers = pools.producers[settings]
    try:
        for _ in range(2):
            with producers.connections.acquire(timeout=PATIENCE) as connection:
                established = connection.connection
                assert established.confirm_publish is confirm
                established.confirm_publish = not confirm
                if used:
                    connection.Producer().publish("x", routing_key="nobody-is-there")
        with producers.acquire(timeout=PATIENCE) as producer:
            assert producer.connection.connection.confirm_publish is confirm
            if confirm:
                with pytest.raises(PublishReturned):
                    producer.publish("x", routing_key="nobody-is-there", mandatory=True)
            else:
                assert "basic_publish" not in vars(producer.channel)
        assert producers.connections.stats().opened == 1
    finally:
        producers.connections.force_close_all()


def test_listeners_of_one_lease_are_not_called_in_the_next(
    amqp_pool: pools.ConnectionPool, queue: str
) -> None:
    producers = pools.ProducerPool(amqp_pool)
    heard: list[Any] = []
    for turn in range(1, 4):
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.channel.events["basic_return"].add(lambda *args: heard.append(args))
            kombu.Producer(producer.channel, on_return=lambda *args: heard.append(args))
            producer.publish("x", routing_key=queue, mandatory=True)
            assert len(heard) == 2 * turn


def test_a_listener_of_the_pools_own_producers_stays(amqp_url: str, queue: str) -> None:
    heard: list[Any] = []

    class Listening(kombu.Producer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, on_return=self.hear, **kwargs)

        @staticmethod
        def hear(*args: Any) -> None:
            heard.append(args)

    pool = pools.ConnectionPool(kombu.Connection(amqp_url), limit=1)
    producers = pools.ProducerPool(pool, Producer=Listening)
    for number in range(3):
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.channel.events["basic_return"].add(lambda *args: None)
            producer.publish("x", routing_key=queue, mandatory=True)
            while len(heard) <= number:
                producer.connection.drain_events(timeout=PATIENCE)
    assert pool.stats().opened == 1
    pool.force_close_all()


# -- nobody's code runs in a thread of ours ---------------------------------------------------------


def test_no_callback_of_a_former_borrower_runs_anywhere(
    amqp_url: str, inbox: Callable[[str], Inbox]
) -> None:
    box = inbox(amqp_url)
    pool = pools.ConnectionPool(confirming(amqp_url, heartbeat=1), limit=1, options=ALWAYS)
    ran: list[str] = []

    def note(*args: Any) -> None:
        ran.append(threading.current_thread().name)
        raise KeyError("the first borrower's")

    with pool.acquire(timeout=PATIENCE) as connection:
        consumer = kombu.Consumer(connection, [entity(box)], on_message=note)
        consumer.consume()
        connection.default_channel.events["basic_return"].add(note)
        connection.connection.on_blocked = connection.connection.on_unblocked = note
        other = connection.channel()
        kombu.Consumer(other, [entity(box)], on_message=note).consume()
    fill(box, 5)
    producers = pools.ProducerPool(pool)
    for _ in range(3):
        # Checked before each loan.
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish("mine", routing_key=box.name)
    assert len(box.bodies(8)) == 8
    assert ran == []
    pool.force_close_all()
    assert ran == []


@pytest.mark.parametrize("way", ["check", "close"])
def test_what_comes_while_the_pool_reads_is_told_to_nobody(
    amqp_url: str, queue: str, way: str
) -> None:
    """A return that comes late, to a producer class with a listener of its own."""
    ran: list[str] = []

    class Listening(kombu.Producer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, on_return=self.hear, **kwargs)

        @staticmethod
        def hear(*args: Any) -> None:
            ran.append(threading.current_thread().name)

    pool = pools.ConnectionPool(kombu.Connection(amqp_url), limit=1, options=ALWAYS)
    producers = pools.ProducerPool(pool, Producer=Listening)
    with producers.acquire(timeout=PATIENCE) as producer:
        item = producer.connection.item
        producer.publish("x", routing_key=queue, mandatory=True)
    eventually(lambda: item.pooled_session.transport.look() == "readable")
    if way == "check":
        with pool.acquire(timeout=PATIENCE) as connection:
            assert connection.item is item
    pool.force_close_all()
    assert ran == []


@pytest.mark.parametrize("end", ENDING, ids=lambda end: end.__name__)
def test_callbacks_of_a_lease_that_was_not_released_run_in_no_thread_of_ours(
    any_url: str,
    inbox: Callable[[str], Inbox],
    end: Callable[[pools.ConnectionPool, Any], None],
) -> None:
    box = inbox(any_url)
    pool = pools.ConnectionPool(confirming(any_url), limit=1, options=ALWAYS)
    ran: list[str] = []
    leases = [pool.acquire(timeout=PATIENCE)]
    consumer = kombu.Consumer(
        leases[0], [entity(box)], on_message=lambda message: ran.append("ran")
    )
    consumer.consume()
    with pytest.raises(TimeoutError):
        # Now Redis has been asked for a message.
        leases[0].drain_events(timeout=0.01)
    del consumer
    fill(box, 3)
    end(pool, leases.pop())
    gc.collect()
    assert sorted(box.bodies(3)) == [0, 1, 2]
    assert ran == []
    pool.force_close_all()
    assert ran == []


def test_the_pool_hears_of_alarms_whatever_a_borrower_listens_to(
    amqp_pool: pools.ConnectionPool,
) -> None:
    heard: list[Any] = []
    with amqp_pool.acquire(timeout=PATIENCE) as connection:
        established = connection.connection
        established.on_blocked = heard.append
        established.on_unblocked = lambda: heard.append("over")
        # As py-amqp calls it, with what the broker says.
        established._on_blocked()
        assert amqp_pool.publishing.reason is not None
        established._on_unblocked()
        assert amqp_pool.publishing.reason is None
    assert len(heard) == 2
    with amqp_pool.acquire(timeout=PATIENCE) as connection:
        assert connection.connection is established
        assert established.on_blocked is None
        assert established.on_unblocked is None


# -- Redis asks for a message before there is one -----------------------------------------------------


@pytest.mark.redis
def test_what_redis_sends_after_a_lease_is_not_lost(
    redis_url: str, inbox: Callable[[str], Inbox]
) -> None:
    box = inbox(redis_url)
    pool = pools.ConnectionPool(kombu.Connection(redis_url), limit=1)
    ran: list[Any] = []
    with (
        pool.acquire(timeout=PATIENCE) as connection,
        connection.Consumer([entity(box)], on_message=ran.append),
        pytest.raises(TimeoutError),
    ):
        connection.drain_events(timeout=0.01)
    # The lease's BRPOP is still there, and takes it.
    fill(box, 1)
    assert box.bodies(1) == [0]
    assert ran == []
    eventually(lambda: pool.stats().closed)
    pool.force_close_all()


@pytest.mark.redis
@pytest.mark.slow
def test_what_redis_sends_after_a_lease_is_not_lost_where_it_takes_no_writes_for_a_while(
    private_redis: PrivateRedis, inbox: Callable[[str], Inbox]
) -> None:
    box = inbox(private_redis.url)
    pool = pools.ConnectionPool(kombu.Connection(private_redis.url), limit=1)
    with pool.acquire(timeout=PATIENCE) as connection, kombu.Connection(private_redis.url) as other:
        connection.Consumer([entity(box)], on_message=print).consume()
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.01)
        fill(box, 1)
        # The message is on its way. To give it back takes longer than a goodbye may.
        other.default_channel.client.execute_command("CLIENT", "PAUSE", 3000, "WRITE")
    assert box.bodies(1) == [0]
    pool.force_close_all()


# -- who is told ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _nobody_was_named() -> None:
    left._named.clear()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        one.getMessage()
        for one in caplog.records
        if one.name == "kombu_pools_ext" and one.levelno == logging.WARNING
    ]


def test_the_line_is_named_once(
    pool: pools.ConnectionPool, box: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        line = sys._getframe().f_lineno + 1
        with pool.acquire(timeout=PATIENCE) as connection:
            get(connection, box)
            entity(box)(connection.channel()).consume(callback=print)
    (words,) = warnings_in(caplog)
    assert f"borrowed at {__file__}:{line} in" in words
    assert "left 1 consumer, 1 open channel and 1 unacknowledged message behind" in words
    assert "the messages went back to their queues" in words
    assert "with block" in words
    with pool.acquire(timeout=PATIENCE) as connection:
        connection.channel()
    assert len(warnings_in(caplog)) == 2


def test_messages_alone_that_go_back_are_told_without_a_warning(
    pool: pools.ConnectionPool, box: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="kombu_pools_ext")
    for _ in range(2):
        line = sys._getframe().f_lineno + 1
        with pool.acquire(timeout=PATIENCE) as connection:
            get(connection, box)
    assert warnings_in(caplog) == []
    (words,) = [text for text in caplog.messages if "a lease left" in text]
    assert f"borrowed at {__file__}:{line} in" in words
    assert "left 1 unacknowledged message behind" in words


def test_who_leaves_nothing_is_not_named(
    pool: pools.ConnectionPool, box: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    with pool.acquire(timeout=PATIENCE) as connection:
        taken: list[Any] = []
        with (
            connection.channel() as channel,
            kombu.Consumer(
                channel,
                [entity(box)],
                on_message=lambda message: taken.append(message.ack()),
                prefetch_count=1,
            ),
        ):
            while len(taken) < 3:
                connection.drain_events(timeout=PATIENCE)
    with pools.ProducerPool(pool).acquire(timeout=PATIENCE) as producer:
        producer.publish(1, routing_key=box.name)
    assert warnings_in(caplog) == []
    assert box.bodies(1) == [1]
