"""Relays that are killed, frozen and ended while they work."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.outbox import Outbox
from tests.broker.common import PATIENCE, eventually
from tests.databases import Database
from tests.outbox.common import found, make_tables, message, outbox_in, written
from tests.outbox.relays import RelayProcess
from tests.outbox.test_relay import bodies

pytestmark = [pytest.mark.slow, pytest.mark.broker]

MESSAGES = 1600


@pytest.fixture
def outbox(postgresql: Database) -> Iterator[Outbox]:
    make_tables(postgresql)
    made = outbox_in(postgresql)
    yield made
    made.database.close()


@pytest.fixture
def queue(amqp_url: str) -> Iterator[Any]:
    with kombu.Connection(amqp_url) as connection:
        bound = kombu.Queue(f"outbox-{kombu.uuid()}", expires=600)(connection.default_channel)
        bound.declare()
        yield bound


@pytest.fixture
def relays(amqp_url: str, postgresql: Database, tmp_path: Path) -> Iterator[list[RelayProcess]]:
    made = [RelayProcess(amqp_url, postgresql, tmp_path / f"relay-{n}.log") for n in range(2)]
    yield made
    for one in made:
        one.kill()


def write_all(outbox: Outbox, pools: Pools, queue: Any) -> list[str]:
    ids = []
    for start in range(0, MESSAGES, 100):
        for key in (None, "a"):
            ids += written(
                outbox,
                [message(pools, [key, n], queue.name) for n in range(start // 2, start // 2 + 50)],
                key,
            )
    return ids


def is_empty(outbox: Outbox) -> bool:
    return not found(outbox, "id")


def delivered(outbox: Outbox) -> int:
    with outbox.database.transaction() as cursor:
        cursor.execute("SELECT COUNT(*) FROM kombu_pools_outbox")
        return MESSAGES - int(cursor.fetchall()[0][0])


def check(queue: Any, *, copies: bool) -> None:
    """All has arrived, each key in its order, and there are no copies unless there may be."""
    arrived = [tuple(body) for body in bodies(queue)]
    counts = Counter(arrived)
    assert len(counts) == MESSAGES
    if not copies:
        assert len(arrived) == MESSAGES
    first = list(dict.fromkeys(n for key, n in arrived if key == "a"))
    assert first == list(range(MESSAGES // 2))


def test_a_relay_that_is_killed_loses_nothing(
    outbox: Outbox, pools: Pools, queue: Any, relays: list[RelayProcess]
) -> None:
    write_all(outbox, pools, queue)
    for turn in range(2):
        relays[0].start()
        eventually(lambda turn=turn: delivered(outbox) > 200 * (turn + 1), PATIENCE)
        relays[0].kill()
    assert not is_empty(outbox)
    relays[0].start()
    eventually(lambda: is_empty(outbox), PATIENCE)
    check(queue, copies=True)


def test_a_relay_that_ends_in_order_leaves_no_copies(
    outbox: Outbox, pools: Pools, queue: Any, relays: list[RelayProcess]
) -> None:
    write_all(outbox, pools, queue)
    for turn in range(2):
        relays[0].start()
        eventually(lambda turn=turn: delivered(outbox) > 200 * (turn + 1), PATIENCE)
        assert relays[0].end() == 0, relays[0].text
        assert {token for (token,) in found(outbox, "token")} <= {""}
    relays[0].start()
    eventually(lambda: is_empty(outbox), PATIENCE)
    check(queue, copies=False)


def test_a_frozen_relay_marks_nothing_that_another_has_taken(
    outbox: Outbox, pools: Pools, queue: Any, relays: list[RelayProcess]
) -> None:
    write_all(outbox, pools, queue)
    frozen, other = relays
    frozen.start()
    eventually(lambda: delivered(outbox) > 200, PATIENCE)
    frozen.signal(signal.SIGSTOP)
    other.start()
    eventually(lambda: is_empty(outbox), PATIENCE)
    frozen.signal(signal.SIGCONT)
    # It goes on to work.
    assert other.end() == 0
    late = written(outbox, [message(pools, ["late", 1], queue.name)])
    eventually(lambda: is_empty(outbox), PATIENCE)
    assert frozen.end() == 0
    arrived = [(one.payload, one.properties["message_id"]) for one in taken(queue)]
    assert arrived[-1] == (["late", 1], late[0])
    first = list(dict.fromkeys(body[1] for body, _ in arrived if body[0] == "a"))
    assert first == list(range(MESSAGES // 2))
    assert len({one for _, one in arrived}) == MESSAGES + 1


def taken(queue: Any) -> list[Any]:
    found = []
    while (one := queue.get(no_ack=True)) is not None:
        found.append(one)
    return found
