"""What the statements do, on each database."""

from __future__ import annotations

import datetime
import threading
from decimal import Decimal

import pytest
from kombu import Exchange, Queue, binding

from kombu_pools_ext import Pools
from kombu_pools_ext.outbox import Filter, Outbox, SchemaMismatch, State, write
from kombu_pools_ext.outbox.schema import OUTBOX
from kombu_pools_ext.outbox.settlement import GivenBack, Settlement
from tests.databases import Database
from tests.outbox.common import found, make_due, make_tables, message, outbox_in, written

PATIENCE = 60.0
LEASE = 60.0


def claimed(outbox: Outbox, token: str = "a", most: int = 100, alias: str = "default") -> list[str]:
    return [row.message_id for row in outbox.claim(alias, token, most, LEASE).rows]


def settle(outbox: Outbox, token: str, fates: Settlement, **options: bool) -> int:
    return outbox.settle(token, fates, **{"keep": False, "stop_keys": False, **options})


def test_a_row_has_the_whole_message(outbox: Outbox, pools: Pools) -> None:
    headers = {
        "text": "Grüße",
        "number": 2**40,
        "when": datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC),
        "price": Decimal("9.90"),
        "raw": b"\xff\x00",
        "list": [1, {"deep": None}],
    }
    sent = message(
        pools,
        {"order": "ä" * 1000},
        "a.b",
        exchange=Exchange("shop", "topic"),
        headers=headers,
        priority=5,
        expiration=60,
        correlation_id="c",
    )
    written(outbox, [sent])
    (row,) = outbox.claim("default", "a", 10, LEASE).rows
    read = row.message
    assert (read.body, read.message_id, read.using) == (sent.body, sent.message_id, "default")
    expected = {name: value for name, value in sent.arguments.items() if value is not None}
    assert {name: value for name, value in read.arguments.items() if value is not None} == expected


def test_what_is_declared_comes_back_as_it_was(outbox: Outbox, pools: Pools) -> None:
    shop = Exchange("shop", "topic", durable=False, arguments={"alternate-exchange": "other"})
    queues = [
        Queue("orders", shop, "order.#", queue_arguments={"x-max-length": 5}, max_priority=3),
        Queue("all", bindings=[binding(shop, "a.*"), binding(Exchange("x"), "b")]),
        Queue("plain", expires=60.0),
    ]
    written(outbox, [message(pools, declare=[shop, *queues])])
    (row,) = outbox.claim("default", "a", 10, LEASE).rows
    declared = row.message.arguments["declare"]
    assert declared[0] == shop
    assert declared[0].arguments == shop.arguments
    for one, other in zip(declared[1:], queues, strict=True):
        assert one == other
        assert one.queue_arguments == other.queue_arguments
        assert (one.max_priority, one.expires) == (other.max_priority, other.expires)
        assert {(b.exchange.name, b.routing_key) for b in one.bindings} == {
            (b.exchange.name, b.routing_key) for b in other.bindings
        }


def test_what_a_row_cannot_hold_is_refused_before_anything_is_written(
    outbox: Outbox, pools: Pools
) -> None:
    wrong = [
        (message(pools, retry_policy={"errback": print}), None, TypeError, "retry_policy"),
        (message(pools), "k" * 256, ValueError, "key has 256 characters"),
        (message(pools), "a\0b", ValueError, "NUL"),
        (message(pools), "", ValueError, "key is empty"),
        (message(pools), 5, TypeError, "key must be text"),
    ]
    for one, key, kind, words in wrong:
        with pytest.raises(kind, match=words), outbox.database.transaction() as cursor:
            write(cursor, outbox.database.vendor, [(message(pools), None), (one, key)])  # type: ignore[list-item]
        assert found(outbox, "id") == []


def test_a_rolled_back_message_was_never_there(outbox: Outbox, pools: Pools) -> None:
    with pytest.raises(ZeroDivisionError), outbox.database.transaction() as cursor:
        write(cursor, outbox.database.vendor, [(message(pools), None)])
        raise ZeroDivisionError
    assert claimed(outbox) == []


def test_ten_thousand_messages_in_one_call(outbox: Outbox, pools: Pools) -> None:
    sent = [message(pools, number) for number in range(10_000)]
    ids = written(outbox, sent)
    assert claimed(outbox, most=20_000) == ids


def test_large_bodies_are_claimed_a_few_at_a_time(outbox: Outbox, pools: Pools) -> None:
    large = message(pools, b"x" * 12_000_000, serializer="raw")
    ids = written(outbox, [large]) + written(outbox, [message(pools)])
    written(outbox, [message(pools, b"x" * 12_000_000, serializer="raw") for _ in range(2)])
    claim = outbox.claim("default", "a", 100, LEASE)
    assert [row.message_id for row in claim.rows][:2] == ids
    assert len(claim.rows) == 3
    assert claim.is_full
    assert len(outbox.claim("default", "a", 100, LEASE).rows) == 1


def test_what_one_has_claimed_another_does_not_get(
    outbox: Outbox, another: Outbox, pools: Pools
) -> None:
    ids = written(outbox, [message(pools) for _ in range(5)])
    assert claimed(outbox, "a", 3) == ids[:3]
    assert claimed(another, "b") == ids[3:]
    assert claimed(outbox, "c") == []


def test_rows_of_other_aliases_are_left_alone(outbox: Outbox, pools: Pools) -> None:
    written(outbox, [message(pools)])
    (theirs,) = written(outbox, [message(pools, using="other")])
    assert claimed(outbox, alias="other") == [theirs]
    assert outbox.aliases() == {"default", "other"}


def test_a_claim_does_not_wait_for_one_that_another_makes(
    outbox: Outbox, another: Outbox, pools: Pools
) -> None:
    if outbox.database.vendor == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    ids = written(outbox, [message(pools) for _ in range(4)])
    with outbox.database.transaction() as cursor:
        cursor.execute(f"SELECT id FROM {OUTBOX} ORDER BY id LIMIT 2 FOR UPDATE")
        cursor.fetchall()
        assert claimed(another) == ids[2:]


def test_rows_are_due_again_when_the_lease_ends(
    outbox: Outbox, another: Outbox, pools: Pools
) -> None:
    ids = written(outbox, [message(pools)])
    claimed(outbox, "frozen")
    make_due(outbox)
    assert claimed(another, "b") == ids
    (number,) = found(outbox, "id")[0]
    # What the frozen one says later counts no more.
    assert settle(outbox, "frozen", Settlement(done=[number])) == 1
    assert settle(outbox, "frozen", Settlement(given_back=[GivenBack((number,), 0.0)])) == 1
    assert found(outbox, "token") == [("b",)]
    assert settle(another, "b", Settlement(done=[number])) == 0
    assert found(outbox, "id") == []


def test_done_rows_are_deleted_or_kept_for_a_while(outbox: Outbox, pools: Pools) -> None:
    written(outbox, [message(pools) for _ in range(2)])
    first, second = outbox.claim("default", "a", 10, LEASE).rows
    settle(outbox, "a", Settlement(done=[first.id]))
    settle(outbox, "a", Settlement(done=[second.id]), keep=True)
    assert found(outbox, "id", "state") == [(second.id, State.DONE)]
    assert claimed(outbox) == []
    assert outbox.sweep(60.0) == 0
    assert outbox.sweep(0.0) == 1
    assert found(outbox, "id") == []


def test_a_refused_row_comes_later_and_counts(outbox: Outbox, pools: Pools) -> None:
    written(outbox, [message(pools)])
    (row,) = outbox.claim("default", "a", 10, LEASE).rows
    settle(outbox, "a", Settlement(given_back=[GivenBack((row.id,), 300.0, "nacked", True)]))
    assert claimed(outbox) == []
    assert found(outbox, "attempts", "reason") == [(1, "nacked")]
    make_due(outbox)
    (again,) = outbox.claim("default", "a", 10, LEASE).rows
    assert again.attempts == 1


# -- keys --------------------------------------------------------------------------------------------------------------


def test_of_a_key_only_the_first_is_claimed(outbox: Outbox, another: Outbox, pools: Pools) -> None:
    a = written(outbox, [message(pools) for _ in range(3)], "a")
    b = written(outbox, [message(pools) for _ in range(2)], "b")
    free = written(outbox, [message(pools)])
    rows = outbox.claim("default", "one", 100, LEASE).rows
    assert [row.message_id for row in rows] == [a[0], b[0], free[0]]
    assert claimed(another, "other") == []
    following = outbox.claim_next(rows, "one", 10, LEASE)
    assert [row.message_id for row in following] == [a[1], a[2], b[1]]
    assert outbox.claim_next(following[-1:], "one", 10, LEASE) == []


def test_the_same_key_of_two_aliases_is_two_keys(outbox: Outbox, pools: Pools) -> None:
    (mine,) = written(outbox, [message(pools)], "a")
    (theirs,) = written(outbox, [message(pools, using="other")], "a")
    assert claimed(outbox) == [mine]
    assert claimed(outbox, alias="other") == [theirs]


@pytest.mark.parametrize("other", ["A", "a ", "ä"])
def test_keys_that_look_alike_are_different(outbox: Outbox, pools: Pools, other: str) -> None:
    if other == "a " and outbox.database.vendor == "mysql":
        pytest.skip("MySQL's collations leave spaces at the end out: such keys are one")
    ids = written(outbox, [message(pools)], "a") + written(outbox, [message(pools)], other)
    assert claimed(outbox) == ids


def test_the_rows_of_a_key_wait_for_its_first(
    outbox: Outbox, another: Outbox, pools: Pools
) -> None:
    ids = written(outbox, [message(pools) for _ in range(2)], "a")
    (row,) = outbox.claim("default", "one", 1, LEASE).rows
    settle(outbox, "one", Settlement(given_back=[GivenBack((row.id,), 300.0, "nacked", True)]))
    assert claimed(another) == []
    make_due(outbox)
    (row,) = outbox.claim("default", "one", 10, LEASE).rows
    settle(outbox, "one", Settlement(done=[row.id]))
    assert claimed(another) == ids[1:]


@pytest.mark.parametrize("stop_keys", [True, False])
def test_a_dead_row_stops_its_key_if_that_is_wanted(
    outbox: Outbox, pools: Pools, stop_keys: bool
) -> None:
    ids = written(outbox, [message(pools) for _ in range(2)], "a")
    (row,) = outbox.claim("default", "one", 10, LEASE).rows
    settle(outbox, "one", Settlement(dead=[(row, "404\0 \ud800")]), stop_keys=stop_keys)
    assert found(outbox, "state", "reason") == [(State.DEAD, "404 ?"), (State.WAITING, "")]
    assert claimed(outbox, "two") == ([] if stop_keys else ids[1:])


@pytest.mark.parametrize("remedy", ["requeue", "purge"])
def test_a_stopped_key_goes_on_once_the_dead_row_is_dealt_with(
    outbox: Outbox, pools: Pools, remedy: str
) -> None:
    ids = written(outbox, [message(pools) for _ in range(5)], "a")
    (row,) = outbox.claim("default", "one", 10, LEASE).rows
    settle(outbox, "one", Settlement(dead=[(row, "404")]), stop_keys=True)
    # The claim finds nothing but rows that wait, and puts them off.
    assert claimed(outbox, "two", 4) == []
    assert getattr(outbox, remedy)(Filter([State.DEAD])) == 1
    assert claimed(outbox, "three") == (ids[:1] if remedy == "requeue" else ids[1:2])


def test_many_rows_behind_one_do_not_hide_the_others(
    outbox: Outbox, another: Outbox, pools: Pools
) -> None:
    written(outbox, [message(pools) for _ in range(50)], "busy")
    (other,) = written(outbox, [message(pools)])
    assert len(outbox.claim("default", "one", 10, LEASE).rows) == 1
    turns = [claimed(another, "two", 10) for _ in range(6)]
    assert [other] in turns


def test_ids_of_a_key_have_the_order_of_the_commits(
    outbox: Outbox, another: Outbox, pools: Pools
) -> None:
    first, second = message(pools, "first"), message(pools, "second")
    vendor = outbox.database.vendor
    done = threading.Event()

    def write_the_second() -> None:
        written(another, [second], "a")
        # SQLite's connections belong to a thread.
        another.database.close()
        done.set()

    with outbox.database.transaction() as cursor:
        write(cursor, vendor, [(first, "a")])
        writer = threading.Thread(target=write_the_second)
        writer.start()
        # It waits for the transaction that was there before.
        assert not done.wait(0.3)
    assert done.wait(PATIENCE)
    writer.join(PATIENCE)
    assert found(outbox, "message_id") == [(first.message_id,), (second.message_id,)]


@pytest.mark.parametrize("zone", ["-09:30", "+13:00"])
def test_time_zones_do_not_matter(database: Database, pools: Pools, zone: str) -> None:
    """What is written in one zone is due at once in another."""
    make_tables(database)
    set_zone = {
        "postgresql": f"SET TIME ZONE INTERVAL '{zone}' HOUR TO MINUTE",
        "mysql": f"SET time_zone = '{zone}'",
        "sqlite": "SELECT 1",
    }[database.vendor]
    near, far = outbox_in(database), outbox_in(database)
    for turn in (1, 2):
        writer, reader = (near, far) if turn == 1 else (far, near)
        with far.database.transaction() as cursor:
            cursor.execute(set_zone)
        written(writer, [message(pools)])
        (row,) = reader.claim("default", "a", 10, 60.0).rows
        assert reader.claim("default", "b", 10, 60.0).rows == []
        (numbers,) = reader.numbers()
        assert 0.0 <= numbers.oldest < PATIENCE
        assert row.attempts == 0
    near.database.close()
    far.database.close()


# -- commands ----------------------------------------------------------------------------------------------------------


def test_the_numbers_of_an_outbox(outbox: Outbox, pools: Pools) -> None:
    assert outbox.numbers() == []
    written(outbox, [message(pools) for _ in range(3)])
    written(outbox, [message(pools, using="other")])
    rows = outbox.claim("default", "a", 2, LEASE).rows
    settle(outbox, "a", Settlement(dead=[(rows[0], "404")]))
    settle(outbox, "a", Settlement(done=[rows[1].id]), keep=True)
    mine, theirs = outbox.numbers()
    assert (mine.alias, mine.waiting, mine.dead, mine.done) == ("default", 1, 1, 1)
    assert (theirs.alias, theirs.waiting, theirs.dead) == ("other", 1, 0)
    assert 0.0 <= mine.oldest < PATIENCE


def test_a_filter_names_rows(outbox: Outbox, pools: Pools) -> None:
    written(outbox, [message(pools) for _ in range(3)])
    written(outbox, [message(pools, using="other")])
    for alias in ("default", "other"):
        for number, row in enumerate(outbox.claim(alias, "a", 10, LEASE).rows):
            settle(outbox, "a", Settlement(dead=[(row, f"reason {number} of 100%")]))
    dead = [State.DEAD]
    assert outbox.count(Filter(dead)) == 4
    assert outbox.count(Filter([State.WAITING, State.DONE])) == 0
    assert outbox.count(Filter(dead, aliases=["other"])) == 1
    assert outbox.count(Filter(dead, aliases=[])) == 0
    assert outbox.count(Filter(dead, reason="reason 0")) == 2
    assert outbox.count(Filter(dead, reason="100%")) == 4
    assert outbox.count(Filter(dead, reason="1_0")) == 0
    assert outbox.count(Filter(dead, older_than=60)) == 0
    assert outbox.count(Filter(dead, older_than=0)) == 4
    assert outbox.requeue(Filter(dead, reason="reason 0")) == 2
    assert outbox.purge(Filter(dead)) == 2
    assert [state for (state,) in found(outbox, "state")] == [State.WAITING] * 2


def test_a_row_that_a_relay_has_is_not_purged(outbox: Outbox, pools: Pools) -> None:
    written(outbox, [message(pools) for _ in range(2)])
    outbox.claim("default", "a", 1, LEASE)
    assert outbox.purge(Filter([State.WAITING])) == 1
    assert found(outbox, "token") == [("a",)]


def test_a_row_of_a_relay_that_died_can_be_purged(outbox: Outbox, pools: Pools) -> None:
    written(outbox, [message(pools) for _ in range(2)])
    outbox.claim("default", "dead", 1, LEASE)
    make_due(outbox)
    assert outbox.purge(Filter([State.WAITING])) == 2


# -- the schema --------------------------------------------------------------------------------------------------------


def test_the_schema_of_this_version(outbox: Outbox) -> None:
    outbox.check_schema()


def test_a_missing_table_is_told(database: Database) -> None:
    outbox = outbox_in(database)
    with pytest.raises(SchemaMismatch, match=f"the table {OUTBOX} is not .* cannot be read"):
        outbox.check_schema()
    outbox.database.close()


@pytest.mark.parametrize(
    "change, words",
    [
        (f"ALTER TABLE {OUTBOX} ADD COLUMN tomorrow INTEGER", "it has tomorrow"),
        (f"ALTER TABLE {OUTBOX} RENAME COLUMN reason TO why", "it lacks reason"),
    ],
)
def test_the_schema_of_another_version_is_refused(outbox: Outbox, change: str, words: str) -> None:
    with outbox.database.transaction() as cursor:
        cursor.execute(change)
    with pytest.raises(SchemaMismatch, match=f"{words}.*migrate the database"):
        outbox.check_schema()
