"""What the broker's answers mean for rows, on a RabbitMQ that can be made to give them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
from amqp.exceptions import AccessRefused, NotFound, PreconditionFailed
from kombu.exceptions import EncodeError, OperationalError

from kombu_pools_ext import Pools
from kombu_pools_ext.errors import (
    BrokerBlocked,
    BrokerUnreachable,
    PoolTimeout,
    PublishNacked,
    PublishRefused,
    PublishReturned,
    PublishUnknown,
    UnknownAlias,
)
from kombu_pools_ext.outbox import Outbox, Relay, RelaySettings, State
from kombu_pools_ext.outbox.dbapi import DbApiDatabase
from kombu_pools_ext.outbox.verdicts import Verdict, verdict_of
from tests.broker.common import PATIENCE, eventually
from tests.brokers import PrivateRabbitMQ
from tests.databases import Database
from tests.outbox.common import found, make_tables, message, outbox_in, own, written
from tests.outbox.test_relay import bodies, running


@pytest.mark.parametrize(
    "error, verdict",
    [
        (None, Verdict.DONE),
        (PublishReturned("1", 312, "NO_ROUTE", "", "q"), Verdict.DEAD),
        (NotFound("no exchange"), Verdict.DEAD),
        (AccessRefused("no permission"), Verdict.DEAD),
        (PreconditionFailed("too large"), Verdict.DEAD),
        (EncodeError("no JSON"), Verdict.DEAD),
        (ValueError("headers are too large for a frame"), Verdict.DEAD),
        (PublishNacked("full", "1"), Verdict.REFUSED),
        (RuntimeError("nobody knows"), Verdict.REFUSED),
        (PublishRefused("OOM", "1"), Verdict.AWAY),
        (BrokerUnreachable("down"), Verdict.AWAY),
        (BrokerUnreachable("wrong password").like(AccessRefused("login")), Verdict.AWAY),
        (AccessRefused("login", (0, 0), "", 403), Verdict.AWAY),
        (AccessRefused("publish", (60, 40), "Basic.publish", 403), Verdict.DEAD),
        (BrokerBlocked("low on memory"), Verdict.AWAY),
        (PoolTimeout("all are lent"), Verdict.AWAY),
        (UnknownAlias("orders"), Verdict.AWAY),
        (OperationalError("it broke"), Verdict.AWAY),
        (ConnectionResetError("it broke"), Verdict.AWAY),
        (PublishUnknown("no confirm", "1"), Verdict.UNKNOWN),
        (PublishUnknown("no confirm", "1").like(ConnectionResetError()), Verdict.UNKNOWN),
    ],
)
def test_what_an_error_means(error: BaseException | None, verdict: Verdict) -> None:
    assert verdict_of(error) is verdict


@pytest.fixture
def outbox(sqlite: Database) -> Iterator[Outbox]:
    make_tables(sqlite)
    made = outbox_in(sqlite)
    yield made
    made.database.close()


def drained(pools: Pools, database: Database) -> Relay:
    relay = Relay(pools, own(database))
    relay.drain()
    pools.reset()
    return relay


def test_without_permission_a_row_is_dead_and_the_others_go_on(
    outbox: Outbox, sqlite: Database, private_rabbitmq: PrivateRabbitMQ
) -> None:
    private_rabbitmq.add_user("clerk", "secret")
    private_rabbitmq.permit("clerk", ".*", "^(amq[.]default|mine)$", ".*")
    pools = Pools(default=private_rabbitmq.url_of("clerk", "secret"))
    with kombu.Connection(private_rabbitmq.url) as connection:
        channel = connection.default_channel
        kombu.Exchange("theirs", "direct")(channel).declare()
        queue = kombu.Queue("mine")(channel)
        queue.declare()
        written(outbox, [message(pools, 1, "k", exchange="theirs"), message(pools, 2, "mine")])
        drained(pools, sqlite)
        assert bodies(queue) == [2]
    ((state, attempts, reason),) = found(outbox, "state", "attempts", "reason")
    assert (state, attempts) == (State.DEAD, 0)
    assert "ACCESS_REFUSED" in reason
    assert "secret" not in reason


def test_a_wrong_password_is_an_outage(
    outbox: Outbox, sqlite: Database, private_rabbitmq: PrivateRabbitMQ
) -> None:
    pools = Pools(
        default={"URL": private_rabbitmq.url_of("guest", "mistyped"), "ACQUIRE_TIMEOUT": 1}
    )
    written(outbox, [message(pools)])
    relay = drained(pools, sqlite)
    assert (relay.numbers.away, relay.numbers.dead) == (1, 0)
    ((state, attempts, reason),) = found(outbox, "state", "attempts", "reason")
    assert (state, attempts) == (State.WAITING, 0)
    assert "mistyped" not in reason


def test_a_blocked_broker_is_waited_for(
    outbox: Outbox, sqlite: Database, private_rabbitmq: PrivateRabbitMQ
) -> None:
    pools = Pools(default={"URL": private_rabbitmq.url, "ACQUIRE_TIMEOUT": 1, "CONFIRM_TIMEOUT": 1})
    with kombu.Connection(private_rabbitmq.url) as connection:
        queue = kombu.Queue(f"outbox-{kombu.uuid()}")(connection.default_channel)
        queue.declare()
    relay = Relay(pools, own(sqlite), RelaySettings(poll=0.05))
    with running(relay):
        with private_rabbitmq.memory_alarm():
            written(outbox, [message(pools, n, queue.name) for n in range(20)])
            eventually(lambda: relay.numbers.away > 0, PATIENCE)
            assert {row[0] for row in found(outbox, "attempts")} == {0}
        eventually(lambda: not found(outbox, "id"), PATIENCE)
    with kombu.Connection(private_rabbitmq.url) as connection:
        arrived = bodies(kombu.Queue(queue.name)(connection.default_channel))
    assert set(arrived) == set(range(20))
    assert relay.numbers.dead == 0
    pools.reset()


@pytest.mark.broker
def test_a_full_disk_is_waited_for(outbox: Outbox, sqlite: Database, amqp_url: str) -> None:
    """SQLite takes a limit for its file, and says what it says when the disk is full."""
    pools = Pools(default=amqp_url)
    full = [True]

    def connect() -> Any:
        connection = sqlite3.connect(sqlite.name)
        if full[0]:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    with kombu.Connection(amqp_url) as connection:
        queue = kombu.Queue(f"outbox-{kombu.uuid()}", expires=60)(connection.default_channel)
        queue.declare()
        written(outbox, [message(pools, n, queue.name) for n in range(50)])
        small = Outbox(DbApiDatabase(connect, "sqlite", (sqlite3.Error,)))
        with pytest.raises(sqlite3.OperationalError, match="full"):
            written(small, [message(pools, "x" * 1_000_000, queue.name)])
        small.database.close()
        assert len(found(outbox, "id")) == 50
        relay = Relay(
            pools, DbApiDatabase(connect, "sqlite", (sqlite3.Error,)), RelaySettings(poll=0.05)
        )
        with running(relay):
            full[0] = False
            eventually(lambda: not found(outbox, "id"), PATIENCE)
        assert set(bodies(queue)) == set(range(50))
    pools.reset()
