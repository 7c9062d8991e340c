"""A publish that is interrupted at any step: nobody takes another message's answer for his own, nothing is sent twice.

Each attempt is made in a thread of its own: on CPython 3.11 a tracer that raises in an ``except`` clause leaves the
thread in that handler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest

import kombu_pools_ext.broker
from kombu_pools_ext import pools
from kombu_pools_ext.broker.amqp import gathered_batch, publisher
from kombu_pools_ext.errors import Outcome, PublishNacked
from tests.broker.common import PATIENCE, eventually, within
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming
from tests.broker.test_confirms import full  # noqa: F401  # a fixture
from tests.engine.steps import Killed, Steps

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.threads]

BROKER = str(Path(kombu_pools_ext.broker.__file__).parent)
#: More steps than any publish has.
ENDLESS = 5000
#: Messages of a batch.
BATCH = 5

Act = Callable[[Any, str, str], Any]


def one(producer: Any, name: str, attempt: str) -> None:
    producer.publish({"a": 1}, routing_key=name, message_id=attempt, headers={"b": attempt})


def two(producer: Any, name: str, attempt: str) -> None:
    one(producer, name, attempt)
    one(producer, name, f"{attempt}, again")


def batch(producer: Any, name: str, attempt: str) -> Any:
    with producer.batch(max_size=3) as made:
        # For whoever looks at it afterwards.
        producer.made = made
        for number in range(BATCH):
            producer.publish(
                "x", routing_key=name, message_id=f"{attempt}, {number}", mandatory=number == 3
            )


@pytest.fixture
def made(amqp_url: str) -> Iterator[Callable[[bool], pools.ProducerPool]]:
    """Makes a pool of one producer, with confirms or without."""
    pools_made: list[pools.ConnectionPool] = []

    def make(confirmed: bool) -> pools.ProducerPool:
        connection = confirming(amqp_url) if confirmed else kombu.Connection(amqp_url)
        pools_made.append(pools.ConnectionPool(connection, limit=1, confirm_timeout=PATIENCE))
        return pools.ProducerPool(pools_made[-1])

    yield make
    for pool in pools_made:
        pool.force_close_all()


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("swallowed", [False, True])
@pytest.mark.parametrize(
    "act, confirmed",
    [(one, True), (two, False), (batch, True), (batch, False)],
    ids=["one", "two", "batch", "batch without confirms"],
)
def test_at_any_step(
    made: Callable[[bool], pools.ProducerPool],
    amqp_url: str,
    full: str,  # noqa: F811
    inbox: Callable[[str], Inbox],
    monkeypatch: pytest.MonkeyPatch,
    act: Act,
    confirmed: bool,
    swallowed: bool,
) -> None:
    # So that a few messages are gathered, and written in several turns.
    for module in (publisher, gathered_batch):
        monkeypatch.setattr(module, "AT_ONCE", 1)
    monkeypatch.setattr(publisher, "GATHERED", 300)
    box, producers = inbox(amqp_url), made(confirmed)
    returned: set[str] = set()
    for at in range(1, ENDLESS):
        producer = producers.acquire(timeout=PATIENCE)
        producer.publish("warm", routing_key=f"{box.name}-nobody")
        steps, attempt = Steps(kill, at, folder=BROKER), f"attempt {at}"

        def run(
            steps: Steps = steps, producer: Any = producer, attempt: str = attempt
        ) -> BaseException | None:
            try:
                steps(lambda: act(producer, box.name, attempt))
            except BaseException as raised:
                return raised
            return None

        error = within(PATIENCE, run)
        if error is None:
            returned.add(attempt)
        if act is batch:
            results = producer.__dict__.pop("made").results if "made" in producer.__dict__ else {}
            returned |= {name for name, fate in results.items() if fate is Outcome.ACKED}
            returned.discard(attempt)
            if error is None:
                returned |= {f"{attempt}, {number}" for number in range(BATCH)}
        if confirmed and swallowed and producer._batch is None:
            # Else it was in the moment in which the block ends, and so it has not ended for the producer.
            # It is refused, or there is an error that tells nothing. But it is never taken for stored.
            with pytest.raises(Exception, match=r"."):
                producer.publish("x", routing_key=full)
        producer.__exit__(type(error), None if swallowed else error, None)
        with producers.acquire(timeout=PATIENCE) as after:
            after.publish("x", routing_key=box.name, message_id=f"after {at}", timeout=PATIENCE)
            returned.add(f"after {at}")
            if confirmed:
                with pytest.raises(PublishNacked):
                    after.publish("x", routing_key=full)
            else:
                # It answers in turn. What it has not come to is lost with a connection that ends without a word.
                after.channel.queue_declare(box.name, passive=True)
        stats = producers.connections.stats()
        assert (stats.lent, stats.idle) == (0, 1)
        if not steps.happened:
            break
    else:
        pytest.fail("there is no end to the steps")
    assert at > 50
    ids: list[str] = []

    def all_there() -> bool:
        # Besides those that were interrupted when they had been sent; and unconfirmed ones may still be on their way.
        ids.extend(message.properties["message_id"] for message in box.messages())
        return returned <= set(ids)

    eventually(all_there)
    assert len(set(ids)) == len(ids)
