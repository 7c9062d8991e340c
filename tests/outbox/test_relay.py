"""The relay, from a database of each vendor to a real RabbitMQ."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import kombu
import psycopg
import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.control import local
from kombu_pools_ext.control.answer import Answer, Answers
from kombu_pools_ext.control.process_info import Process
from kombu_pools_ext.control.rendering import answer_table
from kombu_pools_ext.control.request import Request
from kombu_pools_ext.outbox import Outbox, Relay, RelaySettings, State, claim_once, write
from kombu_pools_ext.outbox.schema import INBOX, OUTBOX
from tests.broker.common import PATIENCE, eventually
from tests.brokers import PrivateRabbitMQ
from tests.databases import Database
from tests.outbox.common import found, make_due, make_tables, message, outbox_in, own, written

Inbox = Callable[[], list[Any]]


@pytest.fixture
def pools(amqp_url: str) -> Iterator[Pools]:
    made = Pools(default={"URL": amqp_url})
    yield made
    made.reset()


@pytest.fixture
def queue(amqp_url: str) -> Iterator[kombu.Queue]:
    with kombu.Connection(amqp_url) as connection:
        bound = kombu.Queue(f"outbox-{kombu.uuid()}")(connection.default_channel)
        bound.declare()
        yield bound
        bound.delete()


def bodies(queue: Any) -> list[Any]:
    """The bodies of the messages that are in *queue*, which is empty afterwards."""
    taken = []
    while (one := queue.get(no_ack=True)) is not None:
        taken.append(one.payload)
    return taken


@contextmanager
def running(relay: Relay) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=relay.run, name="relay")
    thread.start()
    try:
        yield thread
    finally:
        relay.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def drained(pools: Pools, tables: Database, **settings: Any) -> Relay:
    """A relay that has published all that is due."""
    relay = Relay(pools, own(tables), RelaySettings(**settings))
    relay.drain()
    return relay


@pytest.mark.broker
def test_what_was_committed_arrives(
    outbox: Outbox, tables: Database, pools: Pools, queue: Any
) -> None:
    written(outbox, [message(pools, n, queue.name) for n in range(1000)])
    relay = drained(pools, tables)
    assert sorted(bodies(queue)) == list(range(1000))
    assert found(outbox, "id") == []
    assert relay.numbers.delivered == 1000


@pytest.mark.broker
def test_a_running_relay_sends_what_is_written_later(
    outbox: Outbox, tables: Database, pools: Pools, queue: Any
) -> None:
    with running(Relay(pools, own(tables), RelaySettings(poll=0.1))):
        for number in range(3):
            written(outbox, [message(pools, number, queue.name)])
            got = eventually(lambda: queue.get(no_ack=True), PATIENCE)
            assert got.payload == number
        eventually(lambda: not found(outbox, "id"), PATIENCE)


@pytest.mark.broker
@pytest.mark.postgresql
def test_a_notification_wakes_a_relay_that_seldom_looks(
    postgresql: Database, pools: Pools, queue: Any
) -> None:
    make_tables(postgresql)
    outbox = outbox_in(postgresql)
    with running(Relay(pools, own(postgresql), RelaySettings(poll=3600.0))):
        for number in range(3):
            written(outbox, [message(pools, number, queue.name)])
            eventually(lambda: queue.get(no_ack=True), PATIENCE)
    outbox.database.close()


@pytest.mark.broker
def test_the_messages_of_a_key_arrive_in_their_order(
    outbox: Outbox, tables: Database, pools: Pools, queue: Any
) -> None:
    for number in range(200):
        written(outbox, [message(pools, [key, number], queue.name) for key in "ab"][:1], "a")
        written(outbox, [message(pools, ["b", number], queue.name)], "b")
    drained(pools, tables)
    arrived = bodies(queue)
    for key in "ab":
        assert [n for k, n in arrived if k == key] == list(range(200))


@pytest.mark.broker
def test_several_relays_lose_nothing_and_keep_the_order(
    outbox: Outbox, tables: Database, pools: Pools, queue: Any
) -> None:
    keys = [None, "a", "b", "c"]
    relays = [Relay(pools, own(tables), RelaySettings(poll=0.05, batch=20)) for _ in range(3)]
    with running(relays[0]), running(relays[1]), running(relays[2]):
        for number in range(100):
            for key in keys:
                written(outbox, [message(pools, [key, number], queue.name)], key)
        eventually(lambda: not found(outbox, "id"), PATIENCE)
    arrived = bodies(queue)
    assert len(arrived) == 400
    for key in keys[1:]:
        assert [n for k, n in arrived if k == key] == list(range(100))
    assert sorted(n for k, n in arrived if k is None) == list(range(100))


@pytest.mark.broker
def test_what_can_never_be_delivered_is_dead_at_once(
    outbox: Outbox, tables: Database, pools: Pools, queue: Any
) -> None:
    written(outbox, [message(pools, "returned", f"{queue.name}-nobody")])
    written(outbox, [message(pools, "404", "k", exchange=f"{queue.name}-missing")])
    written(outbox, [message(pools, "unreadable", queue.name)])
    with outbox.database.transaction() as cursor:
        cursor.execute(f"UPDATE {OUTBOX} SET arguments = %s WHERE id = 3", ['{"headers": [}'])
    written(outbox, [message(pools, "fine", queue.name)])
    relay = drained(pools, tables)
    assert bodies(queue) == ["fine"]
    reasons = found(outbox, "state", "attempts", "reason")
    assert [row[:2] for row in reasons] == [(State.DEAD, 0)] * 3
    for (_, _, reason), words in zip(
        reasons, ["PublishReturned", "NotFound", "it cannot be read"], strict=True
    ):
        assert words in reason
    assert relay.numbers.dead == 3


@pytest.mark.broker
def test_a_queue_is_declared_once_and_again_if_it_was_deleted(
    sqlite: Database, pools: Pools, amqp_url: str
) -> None:
    make_tables(sqlite)
    outbox = outbox_in(sqlite)
    relay = Relay(pools, own(sqlite), RelaySettings(poll=0.05))
    declared = kombu.Queue(f"outbox-{kombu.uuid()}")
    with kombu.Connection(amqp_url) as connection, running(relay):
        bound = declared(connection.default_channel)
        for turn in range(3):
            ids = [message(pools, n, declared, declare=[declared]) for n in range(20)]
            written(outbox, ids, "a" if turn else None)
            eventually(lambda turn=turn: relay.numbers.delivered == 20 * (turn + 1), PATIENCE)
            assert sorted(bodies(bound)) == list(range(20))
            bound.delete()
    assert relay.numbers.dead == 0
    outbox.database.close()


@pytest.mark.broker
@pytest.mark.parametrize("stop_keys", [False, True])
def test_a_dead_message_and_its_key(
    outbox: Outbox, tables: Database, pools: Pools, queue: Any, stop_keys: bool
) -> None:
    written(outbox, [message(pools, "dead", f"{queue.name}-nobody")], "a")
    written(outbox, [message(pools, "next", queue.name)], "a")
    written(outbox, [message(pools, "other", queue.name)], "b")
    drained(pools, tables, stop_keys=stop_keys)
    assert sorted(bodies(queue)) == (["other"] if stop_keys else ["next", "other"])


@pytest.mark.broker
def test_what_the_broker_refuses_comes_later_and_in_order(
    outbox: Outbox, tables: Database, amqp_url: str
) -> None:
    pools = Pools(default={"URL": amqp_url, "RETRY": {"nacked": False}})
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    with kombu.Connection(amqp_url) as connection:
        full = kombu.Queue(f"outbox-{kombu.uuid()}", queue_arguments=arguments)
        full = full(connection.default_channel)
        full.declare()
        for number in range(3):
            written(outbox, [message(pools, number, full.name)], "a")
        arrived = []
        for turn in range(3):
            relay = drained(pools, tables)
            assert relay.numbers.refused == (1 if turn < 2 else 0)
            if turn < 2:
                assert [row[0] for row in found(outbox, "attempts")] == [1, 0][: 2 - turn]
            make_due(outbox)
            arrived += bodies(full)
        full.delete()
    pools.reset()
    assert arrived == [0, 1, 2]
    assert found(outbox, "id") == []


def test_an_outage_burns_no_attempt(
    postgresql: Database, private_rabbitmq: PrivateRabbitMQ
) -> None:
    """The broker dies, and comes back, while the relay runs."""
    make_tables(postgresql)
    outbox = outbox_in(postgresql)
    pools = Pools(default={"URL": private_rabbitmq.url, "ACQUIRE_TIMEOUT": 1, "OUTAGE_PATIENCE": 1})
    with kombu.Connection(private_rabbitmq.url) as connection:
        kombu.Queue("orders", durable=True)(connection.default_channel).declare()
    private_rabbitmq.kill()
    relay = Relay(pools, own(postgresql), RelaySettings(poll=0.1))
    with running(relay):
        for number in range(100):
            written(outbox, [message(pools, number, "orders")], f"k{number % 3}")
        eventually(lambda: relay.numbers.away >= 3, PATIENCE)
        assert [row[0] for row in found(outbox, "attempts")] == [0] * 100
        private_rabbitmq.start()
        eventually(lambda: not found(outbox, "id"), PATIENCE)
    with kombu.Connection(private_rabbitmq.url) as connection:
        arrived = bodies(kombu.Queue("orders")(connection.default_channel))
    pools.reset()
    seen = list(dict.fromkeys(arrived))
    assert sorted(seen) == list(range(100))
    for key in range(3):
        assert [n for n in seen if n % 3 == key] == list(range(key, 100, 3))
    outbox.database.close()


@pytest.mark.broker
def test_a_relay_that_stops_gives_back_what_it_has_not_sent(
    outbox: Outbox, tables: Database, pools: Pools, queue: Any
) -> None:
    written(outbox, [message(pools, n, queue.name) for n in range(2000)], "a")
    relay = Relay(pools, own(tables), RelaySettings(poll=0.1))
    with running(relay):
        eventually(lambda: relay.numbers.delivered > 20, PATIENCE)
    left = found(outbox, "token", "state")
    arrived = bodies(queue)
    assert arrived == list(range(2000 - len(left)))
    assert set(left) <= {("", State.WAITING)}


@pytest.mark.broker
def test_rows_of_an_alias_that_is_gone_wait_and_are_told(
    outbox: Outbox, tables: Database, pools: Pools, amqp_url: str, caplog: Any
) -> None:
    former = Pools(removed={"URL": amqp_url})
    written(outbox, [message(former, 1, "q", using="removed")])
    drained(pools, tables)
    assert found(outbox, "state") == [(State.WAITING,)]
    assert "rows of the alias 'removed' wait" in caplog.text


@pytest.mark.broker
def test_a_large_body_arrives(outbox: Outbox, tables: Database, pools: Pools, queue: Any) -> None:
    """MariaDB takes 16 MiB in one statement, and RabbitMQ 4 in one message, unless they are told otherwise."""
    size = 16_000_000 if tables.vendor != "mysql" else 8_000_000
    written(outbox, [message(pools, b"x" * size, queue.name, serializer="raw")])
    relay = drained(pools, tables)
    assert relay.numbers.delivered == 1
    got = queue.get(no_ack=True)
    assert len(got.body) == size


@pytest.mark.broker
def test_status_tells_how_the_outbox_stands(
    outbox: Outbox, tables: Database, pools: Pools, queue: Any
) -> None:
    written(outbox, [message(pools, n, queue.name) for n in range(3)])
    written(outbox, [message(pools, 1, f"{queue.name}-nobody")])
    assert [row.relay for row in local.status(pools)] == [None]
    relay = Relay(pools, own(tables), RelaySettings(poll=0.05))
    with running(relay):
        eventually(lambda: relay.numbers.dead == 1 and relay.numbers.delivered == 3, PATIENCE)
        eventually(lambda: told(pools).get("dead") == 1, PATIENCE)
        assert told(pools).keys() == {"delivered", "rate", "rows", "lag", "dead"}
        assert (told(pools)["delivered"], told(pools)["rows"], told(pools)["lag"]) == (3, 0, 0.0)
    assert [row.relay for row in local.status(pools)] == [None]


def told(pools: Pools) -> dict[str, Any]:
    (row,) = local.status(pools)
    return row.relay or {}


def test_the_table_of_status_has_columns_for_a_relay() -> None:
    row = {"alias": "default", "limit": 10, "closed": {}, "broker": "amqp://mq//"}
    relay = {"delivered": 120, "rate": 41.6, "rows": 10_000, "lag": 3.21, "dead": 0}
    answers = Answers(
        Request(command="status"),
        tuple(
            Answer(Process(f"web1:{n}", "web1", n), "done", (one,), seconds=0.01)
            for n, one in enumerate([row, {**row, "relay": relay}])
        ),
    )
    head, plain, told = (text for _, text in answer_table(answers))
    assert head.split()[-7:] == ["DELIVERED", "RATE", "ROWS", "LAG", "DEAD", "STATE", "BROKER"]
    assert plain.split()[-7:-2] == ["–"] * 5
    assert told.split()[-8:-2] == ["120", "42/s", "10000+", "3.2", "s", "0"]


@pytest.mark.broker
def test_the_inbox_forgets_what_is_old(outbox: Outbox, tables: Database, pools: Pools) -> None:
    def note(message_id: str) -> bool:
        with outbox.database.transaction() as cursor:
            return claim_once(cursor, tables.vendor, message_id, "orders")

    assert note("a")
    with outbox.database.transaction() as cursor:
        cursor.execute(f"UPDATE {INBOX} SET received_at = received_at - 100000000")
    assert note("b")
    drained(pools, tables, keep_inbox=50.0)
    assert (note("a"), note("b")) == (True, False)


@pytest.mark.broker
def test_a_relay_refuses_another_schema(tables: Database, outbox: Outbox, pools: Pools) -> None:
    from kombu_pools_ext.outbox import SchemaMismatch

    with outbox.database.transaction() as cursor:
        cursor.execute(f"ALTER TABLE {OUTBOX} ADD COLUMN tomorrow INTEGER")
    with pytest.raises(SchemaMismatch):
        drained(pools, tables)


def test_a_lease_that_is_shorter_than_a_publish_is_refused(tables: Database) -> None:
    pools = Pools(default={"URL": "amqp://localhost//", "CONFIRM_TIMEOUT": 30})
    with pytest.raises(ValueError, match=r"lease is 20 s, .* alias 'default' may take 35 s"):
        Relay(pools, own(tables), RelaySettings(lease=20.0))


def test_settings_that_make_no_sense_are_told_all_at_once() -> None:
    with pytest.raises(ValueError, match=r"batch must.*; lease must.*; poll must.*; keep must"):
        RelaySettings(batch=0, lease=0.5, poll=float("nan"), keep=-1.0)
    with pytest.raises(ValueError, match="lease must be a number of seconds, not 'x'"):
        RelaySettings(lease="x")  # type: ignore[arg-type]


def test_a_broken_database_is_waited_for(
    postgresql: Database, private_postgresql: Any, pools: Pools, queue: Any
) -> None:
    make_tables(postgresql)
    outbox = outbox_in(postgresql)
    relay = Relay(pools, own(postgresql), RelaySettings(poll=0.05))
    with running(relay):
        written(outbox, [message(pools, "before", queue.name)])
        eventually(lambda: queue.get(no_ack=True), PATIENCE)
        private_postgresql.kill()
        private_postgresql.start()
        outbox.database.close()
        written(outbox, [message(pools, "after", queue.name)])
        assert eventually(lambda: queue.get(no_ack=True), PATIENCE).payload == "after"
    outbox.database.close()


def test_a_relay_whose_database_is_away_sleeps(
    postgresql: Database, private_postgresql: Any, pools: Pools
) -> None:
    make_tables(postgresql)
    asked: list[None] = []
    database = own(postgresql)
    connect = database._connect

    def counting() -> Any:
        asked.append(None)
        return connect()

    database._connect = counting
    relay = Relay(pools, database, RelaySettings(poll=1.0))
    turns: list[float] = []
    pause = relay._pause

    def counted() -> float:
        turns.append(pause())
        return turns[-1]

    relay._pause = counted  # type: ignore[method-assign]
    with running(relay):
        eventually(lambda: asked, PATIENCE)
        private_postgresql.kill()
        try:
            eventually(lambda: len(asked) > 6, PATIENCE)
            # What is done now and then has become due meanwhile.
            before, relay._next_report = len(asked), 0.0
            turns.clear()
            eventually(lambda: len(asked) > before + 5, PATIENCE)
            assert len(turns) < 50
        finally:
            private_postgresql.start()


def test_a_database_that_cannot_be_reached_is_told_as_such(
    postgresql: Database, private_postgresql: Any, pools: Pools
) -> None:
    make_tables(postgresql)
    private_postgresql.kill()
    try:
        with pytest.raises(psycopg.OperationalError, match="refused"):
            drained(pools, postgresql)
    finally:
        private_postgresql.start()


def test_a_write_within_a_transaction_of_the_application(outbox: Outbox, pools: Pools) -> None:
    """Nothing is visible to a relay before the commit."""
    with outbox.database.transaction() as cursor:
        write(cursor, outbox.database.vendor, [(message(pools), None)])
        if outbox.database.vendor != "sqlite":
            other = outbox_in_same(outbox)
            assert other.claim("default", "a", 10, 60.0).rows == []
            other.database.close()


def outbox_in_same(outbox: Outbox) -> Outbox:
    database: Any = outbox.database
    return Outbox(type(database)(database._connect, database.vendor, database.errors))
