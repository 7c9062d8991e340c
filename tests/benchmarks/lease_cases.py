"""Taking something from a pool and giving it back; and finding the pool."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import kombu
import kombu.pools

from kombu_pools_ext import Pools
from kombu_pools_ext.engine import Pool

from .case import OURS, Contender, Setting, peer, register
from .fakes import FakeDriver, FakePostgres
from .measure import Play, Round, processing, timed

__all__ = ["FLOOR", "KOMBU", "PSYCOPG", "SQLALCHEMY"]

KOMBU = "kombu.pools"
FLOOR = "lock + deque"
PSYCOPG = "psycopg_pool"
SQLALCHEMY = "SQLAlchemy QueuePool"

RELEASE = "pool.acquire(block=True).release()"
WITH = "with pool.acquire(block=True): pass"
#: Every publish asks for the channel; kombu's producer opens it when it is acquired.
CHANNEL = "with pool.acquire(block=True) as producer: producer.channel"


@contextmanager
def floor(setting: Setting) -> Iterator[Round]:
    """What no pool of threads can do without: two critical sections, and a container."""
    names = {"lock": threading.Lock(), "idle": deque([object()])}
    play = processing("with lock: item = idle.pop()\nwith lock: idle.append(item)", **names)
    yield timed(play, setting.seconds)


# -- connections and producers ---------------------------------------------------------------------


@contextmanager
def our_pools(setting: Setting, **settings: Any) -> Iterator[Pools]:
    """Our pools with an alias ``default``, closed at the end."""
    pools = Pools({"default": setting.settings(confirm=False, **settings)})
    try:
        yield pools
    finally:
        for pool in (pools.producers["default"], pools.connections["default"]):
            pool.force_close_all(close_pool=False)


@contextmanager
def kombus_pools(
    setting: Setting, *, confirm: bool = False, limit: int = 10
) -> Iterator[tuple[Any, Any]]:
    """A connection pool of kombu's and a producer pool on it."""
    connections = setting.connection(confirm=confirm).Pool(limit=limit)
    producers = kombu.pools.ProducerPool(connections, limit=limit)
    try:
        yield connections, producers
    finally:
        producers.force_close_all()
        connections.force_close_all()


def ours(of: str, code: str) -> Contender:
    """Our pool of *of*, ``connections`` or ``producers``."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        with our_pools(setting) as pools:
            pool = getattr(pools, of)["default"]
            yield timed(processing(code, pool=pool), setting.seconds)

    return contender


def kombus(of: str, code: str) -> Contender:
    """kombu's pool of *of*."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        with kombus_pools(setting) as (connections, producers):
            pool = connections if of == "connections" else producers
            yield timed(processing(code, pool=pool), setting.seconds)

    return contender


for place in ("memory", "amqp", "redis"):
    for name, title, of, code in (
        ("connection", "a connection: acquire and release", "connections", RELEASE),
        ("connection-with", "a connection: `with`", "connections", WITH),
        ("producer", "a producer: `with`, and its channel", "producers", CHANNEL),
        ("producer-only", "a producer: `with`, and nothing in it", "producers", WITH),
    ):
        register(
            f"acquire.{name}.{place}",
            title,
            place,
            {OURS: ours(of, code), KOMBU: kombus(of, code), FLOOR: floor},
        )


# -- the bare engine -------------------------------------------------------------------------------


@contextmanager
def our_engine(setting: Setting) -> Iterator[Round]:
    pool: Pool[Any] = Pool(FakeDriver(), name="bench", limit=10)
    try:
        yield timed(processing("pool.release(pool.acquire(timeout=5))", pool=pool), setting.seconds)
    finally:
        pool.close()


@contextmanager
def psycopgs_pool(setting: Setting) -> Iterator[Round]:
    psycopg_pool = peer("psycopg_pool")
    with psycopg_pool.ConnectionPool(
        connection_class=FakePostgres, min_size=1, max_size=10, timeout=5, open=True
    ) as pool:
        yield timed(processing("pool.putconn(pool.getconn())", pool=pool), setting.seconds)


@contextmanager
def sqlalchemys_pool(setting: Setting) -> Iterator[Round]:
    # Nothing to roll back: that would be a call of the fake's, and none of ours.
    pool = peer("sqlalchemy.pool").QueuePool(
        FakePostgres, pool_size=10, timeout=5, reset_on_return=None
    )
    try:
        yield timed(processing("pool.connect().close()", pool=pool), setting.seconds)
    finally:
        pool.dispose()


register(
    "engine",
    "the bare engine over a fake connection: take and give back",
    "none",
    {OURS: our_engine, PSYCOPG: psycopgs_pool, SQLALCHEMY: sqlalchemys_pool, FLOOR: floor},
)


# -- look-up ---------------------------------------------------------------------------------------


def look_up(by: str) -> Contender:
    """Find our pool of producers by alias, URL or connection."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        with our_pools(setting) as pools:
            key: Any = {
                "alias": "default",
                "URL": setting.url,
                "Connection": setting.connection(),
            }[by]
            group = pools.producers
            group[key]
            yield timed(processing("group[key]", group=group, key=key), setting.seconds)

    return contender


@contextmanager
def kombus_look_up(setting: Setting) -> Iterator[Round]:
    """kombu knows only this one."""
    with closing(setting.connection()) as connection:
        group = kombu.pools.Producers(limit=10)
        group[connection]
        play: Play = processing("group[key]", group=group, key=connection)
        yield timed(play, setting.seconds)


for by in ("alias", "URL", "Connection"):
    register(
        f"look-up.{by.lower()}",
        f"find the pool of producers by {by} (kombu: by Connection)",
        "memory",
        {OURS: look_up(by), KOMBU: kombus_look_up},
    )
