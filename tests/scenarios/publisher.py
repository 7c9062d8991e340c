"""One publishing process of a scenario: `python publisher.py FOLDER SPEC`, with the spec as JSON.

A script of its own, which imports nothing of the tests, so that it runs on whatever is installed. Threads or coroutines
publish numbered messages through a pool's public API, as a careful user would write it, and everything that a caller
sees goes into a journal, one line a write, so that it survives the process. The stage speaks to it by files in the
folder: `pause` lets the threads rest while it is there, `fork`, `clock` and `dns` are faults that only the process
itself can suffer, `stop` ends it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

#: Seconds between two looks at the folder.
LOOK = 0.02
#: The broker's name in the scenario where the DNS goes; nobody else resolves it.
HOST = "broker.scenario.test"
#: Seconds that a resolver takes to give up; most take 5 or more.
LOOK_UP = 1.0
#: Seconds by which the wall clock jumps.
JUMP = 86_400.0
#: Event loops that the coroutines of a process are spread over, each in a thread of its own.
LOOPS = 2
#: As ours has it by default (docs/reference/settings.md), so that both have the same chances.
RETRY = {"max_retries": 3, "interval_start": 0.0, "interval_step": 0.2, "interval_max": 1.0}

faults: set[str] = set()


def suffer() -> None:
    """Put the faults that only the process itself can suffer between the libraries and the system.

    Before any of them is imported: they may keep `time.time` under a name of their own.
    """
    now, look_up = time.time, socket.getaddrinfo

    def moved_clock() -> float:
        return now() + (JUMP if "clock" in faults else 0.0)

    def dns(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in (HOST, HOST.encode()):
            return look_up(host, *args, **kwargs)
        if "dns" in faults:
            time.sleep(LOOK_UP)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return look_up("127.0.0.1", *args, **kwargs)

    time.time, socket.getaddrinfo = moved_clock, dns


class Contender:
    """A way to publish one message."""

    #: Whether coroutines publish, by :meth:`apublish`, instead of threads.
    is_awaited: ClassVar[bool] = False

    def __init__(self, spec: dict[str, Any]) -> None:
        self.queue: str = spec["queue"]
        self.urls: list[str] = spec["urls"]
        self.heartbeat: int | None = spec["heartbeat"]
        self.limit: int = spec["limit"]
        #: Seconds for a connection from the pool, and from then on for the broker's confirm.
        self.patience: float = spec["patience"]
        self.confirm_timeout: float = spec["confirm_timeout"]
        #: Seconds for one attempt to connect; None for the default.
        self.connect_timeout: float | None = spec["connect_timeout"]
        self.amqp = self.urls[0].startswith("amqp")
        self.prepare()

    def prepare(self) -> None:
        raise NotImplementedError

    def publish(self, body: str) -> None:
        raise NotImplementedError

    async def apublish(self, body: str) -> None:
        raise NotImplementedError


class Guide(Contender):
    """`kombu.pools` as kombu's user guide shows it: an acquire that blocks, a publish with a retry policy."""

    transport_options: ClassVar[dict[str, Any] | None] = None

    def prepare(self) -> None:
        import kombu
        import kombu.pools

        self.connection = kombu.Connection(
            ";".join(self.urls),
            heartbeat=self.heartbeat or 0,
            transport_options=self.transport_options if self.amqp else None,
        )
        kombu.pools.set_limit(self.limit)
        self.producers = kombu.pools.producers

    def publish(self, body: str) -> None:
        with self.producers[self.connection].acquire(block=True) as producer:
            producer.publish(body, routing_key=self.queue, retry=True, retry_policy=RETRY)


class Careful(Guide):
    """`kombu.pools` with everything on that kombu has to offer: confirms, time-outs for them and for the pool."""

    transport_options: ClassVar[dict[str, Any] | None] = {"confirm_publish": True}

    def publish(self, body: str) -> None:
        options = {"confirm_timeout": self.confirm_timeout} if self.amqp else {}
        pool = self.producers[self.connection]
        with pool.acquire(block=True, timeout=self.patience) as producer:
            producer.publish(
                body, routing_key=self.queue, retry=True, retry_policy=RETRY, **options
            )


class Ours(Contender):
    """This project's, with its defaults but for the waits, which are the same for all.

    There are more threads than connections, so some have a lease each, and others share one.
    """

    publish_over: ClassVar[str] = "auto"

    def prepare(self) -> None:
        from kombu_pools_ext import Pools

        settings: dict[str, Any] = {
            "url": self.urls,
            "limit": self.limit,
            "acquire_timeout": self.patience,
            "confirm_timeout": self.confirm_timeout,
            "publish_over": self.publish_over,
        }
        if self.heartbeat is not None:
            settings["heartbeat"] = self.heartbeat
        if self.connect_timeout is not None:
            settings["connect_timeout"] = self.connect_timeout
        self.pools = Pools(default=settings)

    def publish(self, body: str) -> None:
        self.pools.publish(body, routing_key=self.queue)


class Leased(Ours):
    """The same with a lease for each message."""

    publish_over: ClassVar[str] = "leased"


class Shared(Ours):
    """The same over one connection that all threads share."""

    publish_over: ClassVar[str] = "shared"


class Awaited(Shared):
    """The same from coroutines."""

    is_awaited: ClassVar[bool] = True

    async def apublish(self, body: str) -> None:
        await self.pools.apublish(body, routing_key=self.queue)


CONTENDERS: dict[str, type[Contender]] = {
    "kombu.pools, by its guide": Guide,
    "kombu.pools, careful": Careful,
    "ours": Ours,
    "ours, leased": Leased,
    "ours, shared": Shared,
    "ours, awaited": Awaited,
}


class Process:
    """The threads of one process, and their journal."""

    def __init__(
        self, folder: Path, name: str, contender: Contender, threads: int, pause: float
    ) -> None:
        self.folder, self.name, self.contender = folder, name, contender
        self.threads, self.pause = threads, pause
        self.journal = os.open(
            folder / f"{name}.journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        self.stopping = threading.Event()
        self.going = threading.Event()
        self.going.set()
        #: What came of the file in the folder with this name, once.
        self.orders: dict[str, Callable[[], None]] = {"fork": self.fork}
        self.children: list[int] = []

    def write(self, *words: object) -> None:
        line = " ".join(str(word) for word in (f"{time.monotonic():.4f}", *words))
        os.write(self.journal, (line.replace("\n", " ")[:1000] + "\n").encode())

    @contextmanager
    def noted(self, message: str) -> Iterator[None]:
        """Publishes *message* within; what comes of it is written."""
        self.write("begin", message)
        try:
            yield
        except Exception as error:
            self.write("error", message, type(error).__name__, error)
        else:
            self.write("ok", message)

    def work(self, number: int) -> None:
        turn = 0
        while not self.stopping.is_set():
            if not self.going.wait(LOOK):
                continue
            message = f"{self.name}.{number}.{turn}"
            turn += 1
            with self.noted(message):
                self.contender.publish(message)
            self.stopping.wait(self.pause)

    async def work_awaited(self, number: int) -> None:
        turn = 0
        while not self.stopping.is_set():
            if not self.going.is_set():
                await asyncio.sleep(LOOK)
                continue
            message = f"{self.name}.{number}.{turn}"
            turn += 1
            with self.noted(message):
                await self.contender.apublish(message)
            await asyncio.sleep(self.pause)

    def work_in_loop(self, numbers: Sequence[int]) -> None:
        """Run a coroutine for each of *numbers*."""

        async def work() -> None:
            await asyncio.gather(*map(self.work_awaited, numbers))

        asyncio.run(work())

    def workers(self) -> list[threading.Thread]:
        numbers = range(self.threads)
        if self.contender.is_awaited:
            loops = [numbers[first::LOOPS] for first in range(LOOPS)]
            return [
                threading.Thread(target=self.work_in_loop, args=(some,), daemon=True)
                for some in loops
            ]
        return [
            threading.Thread(target=self.work, args=(number,), daemon=True) for number in numbers
        ]

    def run(self) -> None:
        """Publish until the folder says `stop`, then let what is under way come to its end."""
        workers = self.workers()
        for worker in workers:
            worker.start()
        while not (self.folder / "stop").exists():
            self.look()
            time.sleep(LOOK)
        self.stopping.set()
        for worker in workers:
            worker.join()
        for child in self.children:
            os.waitpid(child, 0)

    def look(self) -> None:
        if (self.folder / "pause").exists():
            self.going.clear()
        else:
            self.going.set()
        for fault in ("clock", "dns"):
            if (self.folder / fault).exists():
                faults.add(fault)
            else:
                faults.discard(fault)
        for order in list(self.orders):
            if (self.folder / order).exists():
                self.orders.pop(order)()

    def fork(self) -> None:
        """A child goes on beside its parent, in the middle of everything, with the pools that it inherited."""
        child = os.fork()
        if child:
            self.children.append(child)
            return
        try:
            twin = Process(self.folder, f"{self.name}f", self.contender, self.threads, self.pause)
            twin.orders.clear()
            twin.run()
        finally:
            os._exit(0)


def main(folder: str, text: str) -> None:
    spec = json.loads(text)
    suffer()
    contender = CONTENDERS[spec["contender"]](spec)
    Process(Path(folder), spec["name"], contender, spec["threads"], spec["pause"]).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
