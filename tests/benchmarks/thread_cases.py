"""Many threads at once: who gets a turn, how long the others wait, and what it costs that they wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from kombu_pools_ext.engine import Pool, PoolOptions

from .case import BODY, OURS, Contender, Setting, register
from .fakes import FakeDriver
from .lease_cases import KOMBU, kombus_pools, our_pools
from .measure import Round, median, percentile

__all__ = ["PATIENCE", "PUBLISHED", "WAITING", "publishing"]

#: Seconds that a thread holds its lease, where nothing is done with it.
HOLD = 0.001
#: How many threads wait, in the cases of that.
WAITING = (1, 10, 100, 1_000)
#: Seconds for a lease; nobody comes near it.
PATIENCE = 60.0


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Do *work* in so many threads at once, and wait for them.

    :raises BaseException: what the first of them raised.
    """
    failures: list[BaseException] = []
    together = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            together.wait(PATIENCE)
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# -- turns -----------------------------------------------------------------------------------------


def turns(lease: Callable[[], Any], threads: int, seconds: float) -> dict[str, float]:
    """*threads* take turns for so long, and hold what they get for `HOLD`."""
    waits: list[list[float]] = [[] for _ in range(threads)]
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        mine = waits[number]
        while (began := time.perf_counter()) < end:
            with lease():
                mine.append(time.perf_counter() - began)
                time.sleep(HOLD)

    in_threads(threads, work)
    every = [wait for mine in waits for wait in mine]
    counts = [len(mine) for mine in waits]
    middle = median(every)
    return {
        "fairness": min(counts) / max(counts),
        "p99": percentile(every, 99) / middle,
        "wait": middle * 1e6,
    }


@contextmanager
def our_turns(setting: Setting) -> Iterator[Round]:
    with our_pools(setting, LIMIT=4) as pools:
        pool = pools.connections["default"]
        yield lambda: turns(lambda: pool.acquire(timeout=PATIENCE), 40, setting.watch)


@contextmanager
def kombus_turns(setting: Setting) -> Iterator[Round]:
    with kombus_pools(setting, limit=4) as (pool, _):
        yield lambda: turns(lambda: pool.acquire(block=True), 40, setting.watch)


register(
    "threads.turns",
    "40 threads on 4 connections, each held for 1 ms",
    "memory",
    {OURS: our_turns, KOMBU: kombus_turns},
    figures={
        "fairness": "fewest turns / most",
        "p99": "p99 wait / median",
        "wait": "µs, median wait",
    },
    rounds=3,
)


# -- publishing ------------------------------------------------------------------------------------


#: What `publishing` finds.
PUBLISHED = {
    "time": "µs",
    "p99": "µs, p99 of a call",
    "processor": "µs of the process's processor time",
}


def publishing(
    publish: Callable[[], Any], crew: ThreadPoolExecutor, threads: int, seconds: float
) -> dict[str, float]:
    """So many *threads* of *crew* publish for so long, each as fast as it can, and once at least."""
    calls: list[float] = []
    began = end = used = 0.0

    def begin() -> None:
        nonlocal began, end, used
        began, used = time.perf_counter(), time.process_time()
        end = began + seconds

    # Also keeps one thread of the crew from doing the work of two.
    together = threading.Barrier(threads, begin)

    def work() -> None:
        together.wait(PATIENCE)
        mine = []
        now = began
        while now < end:
            start = time.perf_counter()
            publish()
            now = time.perf_counter()
            mine.append(now - start)
        calls.extend(mine)

    for future in [crew.submit(work) for _ in range(threads)]:
        future.result()
    took, used = time.perf_counter() - began, time.process_time() - used
    return {
        "time": took / len(calls) * 1e6,
        "p99": percentile(calls, 99) * 1e6,
        "processor": used / len(calls) * 1e6,
    }


@contextmanager
def our_publishing(setting: Setting) -> Iterator[Round]:
    with our_pools(setting, LIMIT=8, CONFIRM=True) as pools:
        pool = pools.producers["default"]

        def publish() -> None:
            with pool.acquire(timeout=PATIENCE) as producer:
                producer.publish(BODY, routing_key=setting.queue)

        with ThreadPoolExecutor(32) as crew:
            yield lambda: publishing(publish, crew, 32, setting.watch)


@contextmanager
def kombus_publishing(setting: Setting) -> Iterator[Round]:
    with kombus_pools(setting, confirm=True, limit=8) as (_, pool):

        def publish() -> None:
            with pool.acquire(block=True) as producer:
                producer.publish(BODY, routing_key=setting.queue)

        with ThreadPoolExecutor(32) as crew:
            yield lambda: publishing(publish, crew, 32, setting.watch)


register(
    "threads.publish",
    "32 threads on 8 connections, confirmed, one acquire a message",
    "amqp",
    {OURS: our_publishing, KOMBU: kombus_publishing},
    figures=PUBLISHED,
    rounds=5,
)


# -- waiting ---------------------------------------------------------------------------------------


def handing_over(waiting: int) -> Contender:
    """Turns on one item that so many others wait for."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        pool: Pool[Any] = Pool(
            FakeDriver(), name="bench", limit=1, options=PoolOptions(max_waiting=10 * waiting)
        )
        total = max(2_000, 3 * waiting)

        def round_() -> dict[str, float]:
            done: list[float] = []

            def work() -> None:
                while len(done) <= total:
                    lease = pool.acquire(timeout=PATIENCE)
                    done.append(time.perf_counter())
                    pool.release(lease)

            held = pool.acquire(timeout=PATIENCE)
            threads = [threading.Thread(target=work) for _ in range(waiting + 1)]
            for thread in threads:
                thread.start()
            while pool.stats().waiting <= waiting:
                time.sleep(0.001)
            pool.release(held)
            for thread in threads:
                thread.join()
            return {"time": (done[total] - done[0]) / total * 1e6}

        before = threading.stack_size(256 * 1024)
        try:
            yield round_
        finally:
            threading.stack_size(before)
            pool.close()

    return contender


register(
    "threads.waiting",
    "a turn on one item, from hand to hand, while so many threads wait for it",
    "none",
    {f"{waiting:,} waiting": handing_over(waiting) for waiting in WAITING},
    rounds=15,
)
