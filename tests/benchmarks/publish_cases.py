"""Publishing: one message for each lease, and many in a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from .case import BODY, OURS, Contender, Setting, register
from .lease_cases import KOMBU, kombus_pools, our_pools
from .measure import Round, statement, timed
from .peers import AIO_PIKA, AMQPSTORM, PIKA, aio_pika, amqpstorm, pika

__all__ = ["BATCH", "EACH", "HELD", "KOMBU_BATCH", "OURS_UNCONFIRMED"]

HELD = "kombu producer held"
EACH = "connection per publish"
KOMBU_BATCH = "kombu producer held, batch"
OURS_UNCONFIRMED = "ours, unconfirmed"
#: Messages of a batch.
BATCH = 1_000

LEASE_AND_PUBLISH = (
    "with pool.acquire(timeout=5) as producer: producer.publish(body, routing_key=queue)"
)
#: kombu waits for what another lends only with `block`; here there is always one.
KOMBUS_LEASE_AND_PUBLISH = (
    "with pool.acquire(block=True) as producer: producer.publish(body, routing_key=queue)"
)
LEASE_AND_BATCH = """
with pool.acquire(timeout=5) as producer:
    with producer.batch(max_size=size):
        for _ in range(size):
            producer.publish(body, routing_key=queue)
"""
HELD_BATCH = """
with producer.batch(max_size=size):
    for _ in range(size):
        producer.publish(body, routing_key=queue)
"""


def ours(*, confirm: bool, batch: int = 0) -> Contender:
    """One lease for each message, or for a batch of so many."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        with our_pools(setting, CONFIRM=confirm) as pools:
            play = statement(
                LEASE_AND_BATCH if batch else LEASE_AND_PUBLISH,
                pool=pools.producers["default"],
                body=BODY,
                queue=setting.queue,
                size=batch,
            )
            yield timed(play, setting.seconds, per=batch or 1)

    return contender


def kombus(*, confirm: bool) -> Contender:
    """kombu's pools, one lease for each message."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        with kombus_pools(setting, confirm=confirm) as (_, pool):
            names = {"pool": pool, "body": BODY, "queue": setting.queue}
            yield timed(statement(KOMBUS_LEASE_AND_PUBLISH, **names), setting.seconds)

    return contender


def held(*, confirm: bool, batch: int = 0) -> Contender:
    """A producer of kombu's that one thread keeps for ever."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        with closing(setting.connection(confirm=confirm)) as connection:
            code = HELD_BATCH if batch else "producer.publish(body, routing_key=queue)"
            producer = connection.Producer()
            play = statement(code, producer=producer, body=BODY, queue=setting.queue, size=batch)
            yield timed(play, setting.seconds, per=batch or 1)

    return contender


def each(*, confirm: bool) -> Contender:
    """A connection for each message."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        def publish() -> None:
            with setting.connection(confirm=confirm) as connection:
                connection.Producer().publish(BODY, routing_key=setting.queue)

        yield timed(statement("publish()", publish=publish), setting.seconds)

    return contender


def one_by_one(*, confirm: bool, amqp: bool) -> dict[str, Contender]:
    """Everybody who publishes one message at a time."""
    contenders = {
        OURS: ours(confirm=confirm),
        KOMBU: kombus(confirm=confirm),
        HELD: held(confirm=confirm),
        EACH: each(confirm=confirm),
    }
    if amqp:
        contenders |= {
            PIKA: pika(confirm=confirm),
            AMQPSTORM: amqpstorm(confirm=confirm),
            AIO_PIKA: aio_pika(confirm=confirm),
        }
    return contenders


for place in ("memory", "amqp", "amqps", "amqp+1ms", "amqp+10ms", "redis", "rediss"):
    register(
        f"publish.{place}",
        "publish, one acquire a message" + (", unconfirmed" if place.startswith("amqp") else ""),
        place,
        one_by_one(confirm=False, amqp=place.startswith("amqp")),
    )

for place in ("amqp", "amqps", "amqp+1ms", "amqp+10ms"):
    register(
        f"confirmed.{place}",
        "publish, one acquire a message, confirmed",
        place,
        one_by_one(confirm=True, amqp=True),
    )

for place in ("amqp", "amqps", "amqp+1ms", "amqp+10ms"):
    register(
        f"batch.{place}",
        f"a message of a confirmed batch of {BATCH:,} (kombu.pools: of as many, one acquire each)",
        place,
        {
            OURS: ours(confirm=True, batch=BATCH),
            OURS_UNCONFIRMED: ours(confirm=False, batch=BATCH),
            KOMBU: kombus(confirm=True),
            AIO_PIKA: aio_pika(confirm=True, together=BATCH),
        },
    )

for place in ("redis", "rediss"):
    register(
        f"batch.{place}",
        f"a message of a batch of {BATCH:,} (kombu.pools: of as many, one acquire each)",
        place,
        {
            OURS: ours(confirm=False, batch=BATCH),
            KOMBU: kombus(confirm=False),
            KOMBU_BATCH: held(confirm=False, batch=BATCH),
        },
    )
