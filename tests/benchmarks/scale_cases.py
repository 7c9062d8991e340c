"""Many pools, many connections, a restart, an import: what happens once, or all the time while nothing happens."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager

import kombu

from kombu_pools_ext import Pools, reset
from kombu_pools_ext.engine.maintenance import LONGEST_NAP
from kombu_pools_ext.pools import connections
from tests.brokers import PrivateRabbitMQ

from .case import BODY, OURS, Contender, Setting, register
from .lease_cases import our_pools
from .measure import Round, processing

__all__ = ["CONNECTIONS", "TENANTS"]

#: Pools of a process that has one for each of its tenants.
TENANTS = 10_000
#: Idle connections of one pool.
CONNECTIONS = 1_000
#: Seconds between two heartbeats of ours on one connection, where the interval is HEARTBEAT's default.
BEATS = 20.0
LOOK_UP = "for url in some: group[url]"


def busy(seconds: float) -> float:
    """Percent of a core that this process uses while nobody asks it for anything.

    :param seconds: of a whole cycle, in which everything that recurs has its turn.
    """
    began, used = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    return 100 * (time.process_time() - used) / (time.perf_counter() - began)


@contextmanager
def tenants(setting: Setting) -> Iterator[Round]:
    """As many pools as there are tenants: made, looked up, used once, and left alone."""

    def round_() -> dict[str, float]:
        urls = [f"memory://localhost/tenant-{number}" for number in range(TENANTS)]
        few, many = urls[:10], urls[:: TENANTS // 10]
        for url in few:
            connections[url]
        turns = 2_000
        look_up = processing(LOOK_UP, group=connections, some=few)
        look_up(turns)
        with_few = look_up(turns)
        tracemalloc.start()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for url in urls[10:]:
            connections[url]
        gc.collect()
        size = (tracemalloc.get_traced_memory()[0] - before) / (TENANTS - 10)
        tracemalloc.stop()
        look_up = processing(LOOK_UP, group=connections, some=many)
        look_up(turns)
        with_many = look_up(turns)
        for url in urls:
            with connections[url].acquire(timeout=60):
                pass
        quiet = time.monotonic() + 60
        while threading.active_count() > 2 and time.monotonic() < quiet:
            time.sleep(0.01)
        return {
            "size": size / 1024,
            "look-up": with_many / turns / 10 * 1e6,
            "look-up of 10": with_few / turns / 10 * 1e6,
            "threads": threading.active_count() - 1,
            "maintenance": busy(LONGEST_NAP),
        }

    try:
        yield round_
    finally:
        reset()


register(
    "scale.pools",
    f"{TENANTS:,} pools in a process, each used once and then left with an idle connection",
    "memory",
    {OURS: tenants},
    figures={
        "size": "KB an idle pool that was not used yet",
        "look-up": "µs, look-up by URL",
        "look-up of 10": "µs, look-up by URL where there are 10",
        "threads": "threads besides the main one",
        "maintenance": "% of a core",
    },
    fresh=True,
    rounds=2,
)


@contextmanager
def idle_connections(setting: Setting) -> Iterator[Round]:
    """Heartbeats on connections that nobody uses."""
    with our_pools(setting, LIMIT=CONNECTIONS, MAX_WAITING=CONNECTIONS) as pools:
        pool = pools.connections["default"]

        def round_() -> dict[str, float]:
            leases = [pool.acquire(timeout=60) for _ in range(CONNECTIONS)]
            for lease in leases:
                lease.release()
            del leases
            figures = {"maintenance": busy(BEATS)}
            stats = pool.stats()
            assert stats.idle == CONNECTIONS, stats
            return figures

        yield round_


register(
    "scale.connections",
    f"{CONNECTIONS:,} idle connections: heartbeats and expiry",
    "amqp",
    {OURS: idle_connections},
    figures={"maintenance": "% of a core"},
    fresh=True,
    rounds=2,
)


@contextmanager
def after_a_restart(setting: Setting) -> Iterator[Round]:
    """The first publish, where all that is idle is stale; and a connect, to the same broker."""
    with PrivateRabbitMQ() as node:
        # A queue would have to be durable, and the time of its disk is not what is measured.
        pools = Pools(default={"URL": node.url, "LIMIT": 10, "MANDATORY": False})

        def connect() -> float:
            began = time.perf_counter()
            with closing(kombu.Connection(node.url)) as connection:
                connection.connect()
                return time.perf_counter() - began

        def round_() -> dict[str, float]:
            leases = [pools.producers["default"].acquire(timeout=30) for _ in range(10)]
            for lease in leases:
                lease.publish(BODY, routing_key=setting.queue)
                lease.release()
            assert pools.connections["default"].stats().idle == 10
            node.restart()
            for _ in range(3):
                connect()  # a node's first ones take longer
            connecting = connect()
            began = time.perf_counter()
            pools.publish(BODY, routing_key=setting.queue)
            publishing = time.perf_counter() - began
            return {"publish": publishing * 1e3, "connect": connecting * 1e3}

        try:
            yield round_
        finally:
            reset()


register(
    "restart",
    "the first publish after a restart of the broker, over 10 stale connections",
    "none",
    {OURS: after_a_restart},
    figures={"publish": "ms", "connect": "ms, one connect of kombu's"},
    rounds=9,
)


# -- import ----------------------------------------------------------------------------------------

TIMED_IMPORT = """
import sys, time
{first}
began = time.perf_counter()
import {module}
print((time.perf_counter() - began) * 1e3)
"""
#: kombu's `__init__` loads nothing by itself; this is what whoever uses kombu has loaded.
KOMBU_IN_USE = "from kombu import Connection, Exchange, Producer, Queue"


def importing(module: str, first: str) -> Contender:
    """Import *module* in a new interpreter that has done *first*, and finds bytecode, as whoever has it installed."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        with tempfile.TemporaryDirectory(prefix="bench-") as bytecode:
            environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
            # Where it is set, each import of each round would compile everything.
            environment.pop("PYTHONDONTWRITEBYTECODE", None)

            def round_() -> dict[str, float]:
                code = TIMED_IMPORT.format(first=first, module=module)
                done = subprocess.run(
                    [sys.executable, "-c", code],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                return {"time": float(done.stdout)}

            round_()  # compiles
            yield round_

    return contender


register(
    "import",
    "import of kombu_pools_ext, compiled, where kombu's Connection and Producer are imported already",
    "none",
    {
        OURS: importing("kombu_pools_ext", KOMBU_IN_USE),
        "kombu.pools": importing("kombu.pools", KOMBU_IN_USE),
        "kombu's Connection and Producer": importing(
            "kombu, kombu.connection, kombu.messaging", ""
        ),
        "ours, over a bare import of kombu": importing("kombu_pools_ext", "import kombu"),
    },
    figures={"time": "ms"},
    rounds=21,
)
