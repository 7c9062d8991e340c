"""The broker in memory and RabbitMQ answer the same, whatever is declared, bound and published.

Hypothesis makes plays; each is played on both. ``LIKE_RABBITMQ=10000`` says how many.
"""

from __future__ import annotations

import os
import uuid
from typing import Any

import amqp
import kombu
import pytest
from hypothesis import HealthCheck, given, settings
from kombu.utils.url import parse_url

from kombu_pools_ext.testing import brokers
from tests.testing.topologies import Player, Step, plays

#: The plays of one run. Each takes some 30 ms, most of which is RabbitMQ's.
PLAYS = int(os.environ.get("LIKE_RABBITMQ", "60"))
#: The same ones each time, unless more are asked for.
CHOSEN = "LIKE_RABBITMQ" not in os.environ


def in_memory() -> Any:
    connection: Any = kombu.Connection("test://like-rabbitmq").connection
    return connection


def played(player: Player, steps: list[Step], expected: dict[str, Any] | None) -> list[Any]:
    with player:
        player.play(steps)
        counts = player.settle(expected)
        return [*player.notes, counts, player.contents()]


@pytest.fixture
def rabbitmq(amqp_url: str) -> dict[str, Any]:
    parts = parse_url(amqp_url)
    return {
        "host": f"{parts['hostname']}:{parts['port'] or 5672}",
        "userid": parts["userid"] or "guest",
        "password": parts["password"] or "guest",
        "virtual_host": parts["virtual_host"] or "/",
    }


def test_both_answer_the_same(rabbitmq: dict[str, Any]) -> None:
    def connect() -> Any:
        connection = amqp.Connection(**rabbitmq)
        connection.connect()
        return connection

    with connect() as connection:
        version = connection.server_properties["version"]
    if int(version.partition(".")[0]) > 3:
        pytest.skip("the broker in memory refuses in the words of RabbitMQ 3.10, and 4 has others")

    @settings(
        max_examples=PLAYS,
        derandomize=CHOSEN,
        deadline=None,
        suppress_health_check=[*HealthCheck],
        database=None,
    )
    @given(plays())
    def compare(steps: list[Step]) -> None:
        brokers.clear()
        prefix = f"like-{uuid.uuid4().hex[:12]}."
        ours = played(Player(in_memory, prefix), steps, None)
        counts: dict[str, Any] = ours[-2]
        theirs = played(Player(connect, prefix), steps, counts)
        assert ours == theirs

    compare()


@settings(max_examples=30, deadline=None, suppress_health_check=[*HealthCheck], database=None)
@given(plays())
def test_it_answers_the_same_twice(steps: list[Step]) -> None:
    """Without a RabbitMQ at hand, each play can at least be played."""
    found = []
    for _ in range(2):
        brokers.clear()
        found.append(played(Player(in_memory, "like."), steps, None))
    assert found[0] == found[1]
