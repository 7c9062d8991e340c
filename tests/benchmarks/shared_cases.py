"""Many who publish at once: threads, coroutines of one event loop, and processes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import asdict, replace
from typing import Any

from kombu.utils.url import parse_url

from tests.proxy import Proxy

from .case import BODY, OURS, Contender, Setting, peer, register
from .lease_cases import KOMBU, our_pools
from .measure import Round, percentile
from .peers import AIO_PIKA, PIKA, aio_pika_connect, aio_pika_publish
from .pythons import ROOT
from .thread_cases import PUBLISHED, publishing
from .ways import OVER_LEASES, OVER_ONE, PATIENCE, TASK_WAYS, WAYS, Way, our_settings

__all__ = ["COROUTINES", "IDLE", "PROCESSES", "TASK_THREADS", "THREADS", "TO_THREAD"]

#: How many publish at once.
THREADS = (1, 32, 128)
TASK_THREADS = (1, 8, 32)
COROUTINES = (50, 1_000)
PROCESSES = 8
THREADS_OF_A_PROCESS = 8
#: Seconds of a round that only opens connections.
WARM_UP = 0.3

# -- threads ---------------------------------------------------------------------------------------


def in_threads(way: Way, threads: int, share: float = 1.0) -> Contender:
    """So many threads publish in this way.

    :param share: of the seconds of a round.
    """

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        with ThreadPoolExecutor(threads) as crew, way(setting) as publish:
            publishing(publish, crew, threads, WARM_UP)
            yield lambda: publishing(publish, crew, threads, setting.load * share)

    return contender


for count in THREADS:
    register(
        f"shared.threads.{count}",
        f"{count} thread{'s' * (count > 1)}, confirmed, serialized each time",
        "amqp",
        {
            name: in_threads(WAYS[name], count, 0.5 if count == 1 else 1)
            for name in (OURS, OVER_ONE, OVER_LEASES, KOMBU, PIKA)
        },
        figures=PUBLISHED,
        # One thread is to be compared more exactly, and needs less time for its figures.
        rounds=8 if count == 1 else 4,
    )

register(
    "shared.link",
    "32 threads, confirmed, over a slow link",
    "amqp+10ms",
    {name: in_threads(WAYS[name], 32) for name in (OURS, OVER_ONE, KOMBU)},
    figures=PUBLISHED,
    rounds=4,
)

for count in TASK_THREADS:
    register(
        f"delay.threads.{count}",
        f"`delay()` of a Celery task, {count} thread{'s' * (count > 1)}, confirmed",
        "amqp",
        {name: in_threads(way, count) for name, way in TASK_WAYS.items()},
        figures=PUBLISHED,
        rounds=6,
    )

# -- coroutines ------------------------------------------------------------------------------------

TO_THREAD = "ours, to_thread"
IDLE = "no publish"
#: Seconds between two beats of the coroutine that tells how late the event loop is.
BEAT = 0.005

#: Publishes one message in the running event loop.
Apublish = Callable[[], Awaitable[Any]]
#: Opens what is needed in the event loop, and gives the function that publishes.
Opened = Callable[[], AbstractAsyncContextManager[Apublish]]


def at_hand(publish: Apublish) -> Opened:
    """Needs nothing to be opened in the event loop."""
    return lambda: nullcontext(publish)


async def beat(until: float) -> list[float]:
    """How late each beat was until then, in seconds."""
    late = []
    while (began := time.perf_counter()) < until:
        await asyncio.sleep(BEAT)
        late.append(time.perf_counter() - began - BEAT)
    return late


async def await_many(opened: Opened, coroutines: int, seconds: float) -> dict[str, float]:
    """So many *coroutines* publish for so long, each as fast as it can, while another one beats."""
    calls: list[float] = []

    async def one(publish: Apublish, end: float) -> None:
        while (start := time.perf_counter()) < end:
            await publish()
            calls.append(time.perf_counter() - start)

    async with opened() as publish:
        await publish()
        began, used = time.perf_counter(), time.process_time()
        end = began + seconds
        beats = asyncio.ensure_future(beat(end))
        await asyncio.gather(*(one(publish, end) for _ in range(coroutines)))
        took, used = time.perf_counter() - began, time.process_time() - used
        figures = {}
        if calls:
            figures = {
                "time": took / len(calls) * 1e6,
                "p99": percentile(calls, 99) * 1e6,
                "processor": used / len(calls) * 1e6,
            }
        return figures | {"lag": percentile(await beats, 99) * 1e6}


def in_loop(opened: Opened, coroutines: int, setting: Setting) -> Round:
    """A round of :func:`await_many`, in an event loop of its own."""

    def play(seconds: float) -> dict[str, float]:
        return asyncio.run(await_many(opened, coroutines, seconds))

    play(WARM_UP)
    return lambda: play(setting.load)


def ours_awaited(name: str, coroutines: int) -> Contender:
    """``Pools.apublish``, over one connection or over a lease for each message."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        with our_pools(setting, **our_settings(name), MAX_WAITING=10_000) as pools:
            opened = at_hand(lambda: pools.apublish(BODY, setting.queue, acquire_timeout=PATIENCE))
            yield in_loop(opened, coroutines, setting)

    return contender


def ours_in_threads(coroutines: int) -> Contender:
    """``Pools.publish`` by ``asyncio.to_thread``, with the default settings: as it was done before ``apublish``."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        with WAYS[OVER_LEASES](setting) as publish:
            yield in_loop(at_hand(lambda: asyncio.to_thread(publish)), coroutines, setting)

    return contender


def aio_pikas(coroutines: int) -> Contender:
    """One connection of aio-pika, with one channel, on which all publish."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        peer("aio_pika")

        @asynccontextmanager
        async def opened() -> AsyncIterator[Apublish]:
            async with await aio_pika_connect(setting) as connection:
                channel = await connection.channel(publisher_confirms=True)
                yield lambda: aio_pika_publish(channel, setting.queue)

        yield in_loop(opened, coroutines, setting)

    return contender


@contextmanager
def idle(setting: Setting) -> Iterator[Round]:
    """An event loop in which nothing but the beat happens."""

    async def nothing() -> None: ...

    yield in_loop(at_hand(nothing), 0, setting)


for count in COROUTINES:
    register(
        f"shared.coroutines.{count}",
        f"{count:,} coroutines of one event loop, confirmed",
        "amqp",
        {
            OURS: ours_awaited(OURS, count),
            OVER_ONE: ours_awaited(OVER_ONE, count),
            OVER_LEASES: ours_awaited(OVER_LEASES, count),
            TO_THREAD: ours_in_threads(count),
            AIO_PIKA: aio_pikas(count),
            IDLE: idle,
        },
        figures=PUBLISHED | {"lag": "µs, p99 of the event loop's lateness"},
        rounds=4,
    )

# -- processes -------------------------------------------------------------------------------------


class Publisher:
    """A process whose threads publish when it is told to."""

    def __init__(self, name: str, setting: Setting) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.shared_cases"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self._tell({"way": name, "setting": asdict(setting)})

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def start(self, seconds: float) -> None:
        """Have its threads publish for so long."""
        self._tell(seconds)

    def answer(self) -> Any:
        """``ready`` at first, then the figures of each round.

        :raises RuntimeError: if it has ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process that published has ended")
        return json.loads(line)

    def _tell(self, order: Any) -> None:
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)


def publish_as_told() -> None:
    """What a :class:`Publisher` runs."""
    order = json.loads(sys.stdin.readline())
    setting, count = Setting(**order["setting"]), THREADS_OF_A_PROCESS
    with ThreadPoolExecutor(count) as crew, WAYS[order["way"]](setting) as publish:
        publish()
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            print(json.dumps(publishing(publish, crew, count, json.loads(line))), flush=True)


def in_processes(name: str) -> Contender:
    """Several processes, each with several threads, in one of the ways."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        parts = parse_url(setting.url)
        with ExitStack() as stack:
            # Counts the connections, and slows nothing down that is measured here.
            proxy = stack.enter_context(Proxy(parts["hostname"], parts["port"]))
            there = replace(
                setting,
                url=setting.url.replace(f"{parts['hostname']}:{parts['port']}", proxy.address),
            )
            publishers = []
            for _ in range(PROCESSES):
                publishers.append(Publisher(name, there))
                stack.callback(publishers[-1].close)
            for one in publishers:
                one.answer()

            def round_() -> dict[str, float]:
                for one in publishers:
                    one.start(setting.load)
                most, end = 0, time.monotonic() + setting.load
                while time.monotonic() < end:
                    most = max(most, len(proxy.alive))
                    time.sleep(0.01)
                times = [one.answer()["time"] for one in publishers]
                return {"connections": most, "time": 1 / sum(1 / each for each in times)}

            yield round_

    return contender


register(
    "shared.processes",
    f"{PROCESSES} processes, each with {THREADS_OF_A_PROCESS} threads that publish",
    "amqp",
    {name: in_processes(name) for name in (OURS, OVER_ONE, OVER_LEASES, KOMBU)},
    figures={
        "connections": "connections at the broker",
        "time": "µs, through a proxy that counts them",
    },
    rounds=2,
)

if __name__ == "__main__":
    publish_as_told()
