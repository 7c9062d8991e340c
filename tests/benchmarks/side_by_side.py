"""What it costs to take and give back a connection and a producer: `kombu.pools` and ours, side by side.

`make bench`. The contenders are interleaved round by round in one process, so that a busy machine slows both; the ratio
of the medians is the result, the microseconds are for orientation. AMQP_URL names the broker (localhost when unset).
"""

from __future__ import annotations

import os
import statistics
import sys
import timeit
from collections.abc import Callable

import kombu
import kombu.pools

import kombu_pools_ext.pools

URL = os.environ.get("AMQP_URL") or "amqp://guest:guest@localhost//"
ROUNDS, TIMES = 31, 2_000


def take_and_release(pool: object) -> Callable[[], None]:
    """Acquire and release."""

    def work() -> None:
        pool.acquire(block=True).release()  # type: ignore[attr-defined]

    return work


def take_within(pool: object) -> Callable[[], None]:
    """A `with` block."""

    def work() -> None:
        with pool.acquire(block=True):  # type: ignore[attr-defined]
            pass

    return work


def take_with_channel(pool: object) -> Callable[[], None]:
    """A `with` block that touches the producer's channel, as every publish does."""

    def work() -> None:
        with pool.acquire(block=True) as producer:  # type: ignore[attr-defined]
            assert producer.channel

    return work


def look_up(pools: object, key: object) -> Callable[[], None]:
    def work() -> None:
        pools[key]  # type: ignore[index]

    return work


def medians(contenders: list[Callable[[], None]]) -> list[float]:
    """Microseconds for one turn of each."""
    rounds: list[list[float]] = [[] for _ in contenders]
    for contender in contenders:
        contender()
    for _ in range(ROUNDS):
        for times, contender in zip(rounds, contenders, strict=True):
            times.append(timeit.timeit(contender, number=TIMES) / TIMES * 1e6)
    return [statistics.median(times) for times in rounds]


def main() -> int:
    connection = kombu.Connection(URL)
    theirs, ours = kombu.pools, kombu_pools_ext.pools
    work = {
        "connection, with": [
            take_within(theirs.connections[connection]),
            take_within(ours.connections[URL]),
        ],
        "connection, acquire and release": [
            take_and_release(theirs.connections[connection]),
            take_and_release(ours.connections[URL]),
        ],
        "producer, with": [
            take_with_channel(theirs.producers[connection]),
            take_with_channel(ours.producers[URL]),
        ],
        "look-up by Connection": [
            look_up(theirs.producers, connection),
            look_up(ours.producers, connection),
        ],
        "look-up by URL (kombu: Connection)": [
            look_up(theirs.producers, connection),
            look_up(ours.producers, URL),
        ],
    }
    print(f"{'':36}{'kombu.pools':>14}{'ours':>12}{'ours/kombu':>12}")
    for name, contenders in work.items():
        kombus, our = medians(contenders)
        print(f"{name:36}{kombus:11.2f} µs{our:9.2f} µs{our / kombus:12.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
