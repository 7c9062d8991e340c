"""One process of a soak: `python soak_worker.py FOLDER SPEC`. Its threads do with the pools whatever one can do.

Like a scenario's publisher, which it is built on, it keeps a journal of its messages. Beside that it tells of its
health, in lines of `NAME.health`: what it holds (`baseline`, `sample` and `end`: when, KiB of memory, descriptors,
threads; the first and the last also objects, and connections among them), `strange` for an error of a class that no
caller should see, and `trouble` for what is wrong with a pool in the end.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

# As a script it finds its neighbour by itself; -P keeps its folder out of the path.
sys.path.append(str(Path(__file__).parent))

from publisher import Contender, Process, suffer

#: Seconds between two samples of the process's health.
SAMPLE = 1.0
#: Seconds in which what was given back must be back, and what was closed must be gone.
SETTLED = 20.0
#: Seconds until a broker that was just struck takes connections again.
READY = 60.0
#: Messages of a forked child.
LAST_WORDS = 6
#: The aliases: RabbitMQ over leases, and over one connection for all; Redis.
RABBITMQ, SHARED, REDIS = "default", "shared", "redis"
#: Messages that one thread has under way at most, from coroutines or submitted.
AT_ONCE = 20
#: The share of coroutines that are cancelled.
CANCELLED = 0.1


class CancelledBefore(OSError):
    """A coroutine was cancelled, and was told that its message was not sent."""


class CancelledMidway(OSError):
    """A coroutine was cancelled, and was told that its message may be in the broker."""


class Mixed(Contender):
    """Pools of AMQP, over both roads, and of Redis."""

    def prepare(self) -> None:
        import amqp
        import kombu
        from kombu.exceptions import LimitExceeded, OperationalError
        from redis.connection import AbstractConnection
        from redis.exceptions import RedisError

        import kombu_pools_ext
        from kombu_pools_ext.engine import maintenance

        self.kombu = kombu
        self.maintenance = maintenance.shared
        #: What a pool must not hold on to once it is closed.
        self.connection_types = (kombu.Connection, amqp.Connection, AbstractConnection)
        self.reset = kombu_pools_ext.reset
        self.batch_failed = kombu_pools_ext.errors.BatchFailed
        self.not_found = amqp.exceptions.NotFound
        self.connections_kept = kombu_pools_ext.errors.ConnectionsKept
        #: What a caller has to expect while brokers fail. Anything else is a mistake of ours.
        self.expected = (
            OperationalError,
            LimitExceeded,
            OSError,
            amqp.exceptions.ConnectionError,
            RedisError,
        )
        common = {
            "limit": self.limit,
            "acquire_timeout": self.patience,
            "confirm_timeout": self.confirm_timeout,
        }
        self.pools = kombu_pools_ext.Pools(
            default={"url": self.urls[0], "heartbeat": self.heartbeat, **common},
            shared={
                "url": self.urls[0],
                "heartbeat": self.heartbeat,
                "publish_over": "shared",
                **common,
            },
            redis={"url": self.urls[1], **common},
        )

    def publish(self, body: str, using: str = RABBITMQ) -> None:
        self.pools.publish(body, routing_key=self.queue, using=using)

    def submit(self, body: str, using: str = SHARED) -> Any:
        return self.pools.submit(body, routing_key=self.queue, using=using)

    async def apublish(self, body: str, using: str = SHARED) -> None:
        await self.pools.apublish(body, routing_key=self.queue, using=using)


def held() -> tuple[int, int, int]:
    """KiB of memory, descriptors and threads that the system says this process has."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    # The one that lists them is one of them.
    descriptors = len(os.listdir("/proc/self/fd")) - 1
    return int(status["VmRSS"].split()[0]), descriptors, int(status["Threads"])


class Worker(Process):
    """A process of a soak."""

    contender: Mixed

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        super().__init__(folder, spec["name"], Mixed(spec), spec["threads"], spec["pause"])
        self.patience = spec["patience"]
        self.seed = f"{spec['seed']}/{self.name}"
        self.dice = random.Random(self.seed)
        self.fork_every: float = spec["fork_every"]
        self.orders.clear()
        self.health = os.open(
            folder / f"{self.name}.health", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )
        self.next_sample = self.next_fork = 0.0
        self.forks = 0
        self.turns = [0] * self.threads

    # -- what it tells ---------------------------------------------------------------------------------

    def tell(self, *words: object) -> None:
        line = " ".join(str(word) for word in words)
        os.write(self.health, (line.replace("\n", " | ") + "\n").encode())

    def sample(self, what: str, *objects: int) -> None:
        self.tell(what, f"{time.monotonic():.3f}", *held(), *objects)

    def message(self, number: int, kind: str = "") -> str:
        """The next message of a thread; *kind* "r" is one that it publishes by itself on a raw connection."""
        self.turns[number] += 1
        return f"{self.name}.{number}.{kind}{self.turns[number]}"

    @contextmanager
    def told(self, *messages: str) -> Iterator[dict[str, str]]:
        """Publishes *messages* within; what comes of each is written. A batch puts its outcomes into the dict."""
        outcomes: dict[str, str] = {}
        for message in messages:
            self.write("begin", message)
        try:
            yield outcomes
        except Exception as error:
            for message in messages:
                what = outcomes.get(message, type(error).__name__)
                if what == "ok":
                    self.write("ok", message)
                else:
                    self.write("error", message, what, error)
            raise
        else:
            for message in messages:
                self.write("ok", message)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Live with what callers have to expect, and tell of everything else."""
        try:
            yield
        except self.contender.expected:
            pass
        except Exception as error:
            self.tell("strange", type(error).__name__, "".join(traceback.format_exception(error)))

    # -- what its threads do -----------------------------------------------------------------------------

    def work(self, number: int) -> None:
        dice = random.Random(f"{self.seed}/{number}")
        actions, weights = [*ACTIONS], [*ACTIONS.values()]
        while not self.stopping.is_set():
            action = dice.choices(actions, weights)[0]
            with self.attempt():
                action(self, number, dice)
            self.stopping.wait(self.pause * dice.uniform(0.5, 1.5))

    def publish(self, number: int, dice: random.Random) -> None:
        message = self.message(number)
        with self.told(message):
            self.contender.publish(message)

    def publish_shared(self, number: int, dice: random.Random) -> None:
        message = self.message(number)
        with self.told(message):
            self.contender.publish(message, SHARED)

    def submit(self, number: int, dice: random.Random) -> None:
        """Some at once; their callbacks write what came of them, before they are waited for."""
        futures = []
        for _ in range(dice.randint(1, AT_ONCE)):
            message = self.message(number)
            self.write("begin", message)
            try:
                future = self.contender.submit(message)
            except Exception as error:
                self.write("error", message, type(error).__name__, error)
                raise
            future.add_done_callback(partial(self.ended, message))
            futures.append(future)
        for future in futures:
            with self.attempt():
                future.result(4 * self.patience)

    def ended(self, message: str, future: Any) -> None:
        error = future.exception()
        if error is None:
            self.write("ok", message)
        else:
            self.write("error", message, type(error).__name__, error)

    def coroutines(self, number: int, dice: random.Random) -> None:
        """Some in a loop of their own; a few are cancelled on the way."""
        asyncio.run(self.await_all(number, dice))

    async def await_all(self, number: int, dice: random.Random) -> None:
        tasks = []
        for _ in range(dice.randint(1, AT_ONCE)):
            tasks.append(asyncio.create_task(self.apublish(self.message(number))))
            if dice.random() < CANCELLED:
                asyncio.get_running_loop().call_later(dice.uniform(0.0, 0.02), tasks[-1].cancel)
        # Those that were cancelled before they began are errors.
        await asyncio.gather(*tasks, return_exceptions=True)

    async def apublish(self, message: str) -> None:
        """Publish *message*. A cancellation ends here; what it says of the message has to be right."""
        with self.attempt(), self.told(message):
            try:
                await self.contender.apublish(message)
            except asyncio.CancelledError as error:
                note = error.__notes__[-1]
                if "was published before that" not in note:
                    before = "it is not in the broker" in note
                    raise (CancelledBefore if before else CancelledMidway)(note) from None

    def refused(self, number: int, dice: random.Random) -> None:
        """Messages that the broker refuses, beside all others on the shared connection; none may be told ok."""
        publish = self.contender.pools.publish
        with suppress(self.contender.not_found):
            publish("", "anywhere", exchange="scenario.missing", using=SHARED)
            self.tell("trouble", "a message to a missing exchange was reported as published")
        publish("", "scenario.missing", mandatory=True, using=SHARED)
        self.tell("trouble", "an unroutable message was reported as published")

    def publish_to_redis(self, number: int, dice: random.Random) -> None:
        message = self.message(number)
        with self.told(message):
            self.contender.publish(message, REDIS)

    def producer_by_hand(self, number: int, dice: random.Random) -> None:
        pool = self.contender.pools.producers[dice.choice((RABBITMQ, RABBITMQ, REDIS))]
        with pool.acquire(timeout=self.patience) as producer:
            for _ in range(dice.randint(1, 5)):
                message = self.message(number)
                # Swallowed, as some do: the pool has to know by itself what the connection is worth.
                with self.attempt(), self.told(message):
                    producer.publish(message, routing_key=self.contender.queue)
                if producer.released or producer.broken:
                    break

    def batch(self, number: int, dice: random.Random) -> None:
        pool = self.contender.pools.producers[RABBITMQ]
        with pool.acquire(timeout=self.patience) as producer:
            messages = [self.message(number) for _ in range(dice.randint(2, 20))]
            with self.told(*messages) as outcomes:
                batch = producer.batch(max_size=dice.choice((3, 100)))
                try:
                    with batch:
                        for message in messages:
                            producer.publish(
                                message, routing_key=self.contender.queue, message_id=message
                            )
                finally:
                    for message, outcome in batch.results.items():
                        outcomes[message] = OUTCOMES[outcome.value]

    def raw(self, number: int, dice: random.Random) -> None:
        with self.contender.pools.connections[RABBITMQ].acquire(timeout=self.patience) as lease:
            self.use(lease, number)

    def long_lease(self, number: int, dice: random.Random) -> None:
        """Longer than two heartbeats, without a look at the connection meanwhile."""
        with self.contender.pools.connections[RABBITMQ].acquire(timeout=self.patience) as lease:
            self.stopping.wait(dice.uniform(1.0, 2.5) * (self.contender.heartbeat or 1))
            self.use(lease, number)

    def use(self, lease: Any, number: int) -> None:
        """As kombu's users do, past the pool: py-amqp's own confirms on a channel of their own."""
        message = self.message(number, "r")
        with self.told(message):
            with lease.channel() as channel:
                self.contender.kombu.Producer(channel).publish(
                    message,
                    routing_key=self.contender.queue,
                    message_id=message,
                    confirm_timeout=self.patience,
                )

    def dropped_lease(self, number: int, dice: random.Random) -> None:
        """Whoever forgets to give it back."""
        pools = self.contender.pools
        pool = dice.choice((pools.connections, pools.producers))[dice.choice((RABBITMQ, REDIS))]
        pool.acquire(timeout=self.patience)

    def rest(self, number: int, dice: random.Random) -> None:
        self.stopping.wait(dice.uniform(0.5, 3.0))

    def reset_all(self, number: int, dice: random.Random) -> None:
        # In an outage it keeps what there is.
        with suppress(self.contender.connections_kept):
            self.contender.pools.reset([dice.choice((RABBITMQ, REDIS))], force=dice.random() < 0.3)

    def drain(self, number: int, dice: random.Random) -> None:
        self.contender.pools.connections[RABBITMQ].drain(timeout=dice.uniform(0.0, 1.0))

    def resize(self, number: int, dice: random.Random) -> None:
        limit = dice.randint(2, self.contender.limit + 2)
        pool = self.contender.pools.connections[dice.choice((RABBITMQ, REDIS))]
        pool.resize(limit, force=True, reset=dice.random() < 0.3)

    def suspend(self, number: int, dice: random.Random) -> None:
        pool = self.contender.pools.connections[dice.choice((RABBITMQ, REDIS))]
        pool.suspend(dice.choice(("wait", "fail")))
        self.stopping.wait(dice.uniform(0.05, 0.5))
        pool.resume()

    # -- beside them ---------------------------------------------------------------------------------------

    def look(self) -> None:
        super().look()
        now = time.monotonic()
        if now >= self.next_sample:
            self.next_sample = now + SAMPLE
            self.sample("sample")
        for child in list(self.children):
            if os.waitpid(child, os.WNOHANG)[0]:
                self.children.remove(child)
        if now >= self.next_fork:
            if self.next_fork:
                self.fork()
            self.next_fork = now + self.fork_every * self.dice.uniform(0.5, 1.5)

    def fork(self) -> None:
        """A child says a few words through the pools that it inherited, and leaves without a goodbye."""
        self.forks += 1
        child = os.fork()
        if child:
            self.children.append(child)
            return
        try:
            for number in range(LAST_WORDS):
                message = f"{self.name}f{self.forks}.0.{number}"
                with self.attempt(), self.told(message):
                    self.contender.publish(message, (RABBITMQ, SHARED, REDIS)[number % 3])
        finally:
            os._exit(0)

    # -- from the beginning to the end -----------------------------------------------------------------------

    def begin(self) -> None:
        """Use all that is ever used, and put it down: what is held then is held for good."""
        for pool in self.contender.pools.pools_of().values():
            pool.wait_ready(READY)
        # The first submission and the first loop load what they need. A fault may strike meanwhile.
        for kind in ("submit", "coroutines"):
            with self.attempt():
                getattr(self, kind)(0, self.dice)
        self.contender.pools.reset(force=True)
        gc.collect()
        settles(lambda: self.rests() and threading.active_count() == 1)
        self.sample("baseline", *self.objects())

    def end(self) -> None:
        """Whether the pools are sound, and what is left when they are empty."""
        gc.collect()
        for alias in self.contender.pools.settings:
            message = f"{self.name}.end.{alias}"
            try:
                with self.told(message):
                    self.contender.publish(message, alias)
            except Exception as error:
                self.tell("trouble", f"{alias}: the last publish failed: {error!r}")
        for alias, pool in self.contender.pools.pools_of().items():
            if not settles(lambda pool=pool: sound(pool)):
                self.tell(
                    "trouble", f"{alias}: nobody uses it, and the numbers are wrong: {pool.stats()}"
                )
        self.contender.reset()
        baseline = self.first("baseline")
        settles(lambda: self.rests() and held()[1] <= baseline[1] and held()[2] <= baseline[2])
        objects = self.objects()
        give_back()
        self.sample("end", *objects)

    def rests(self) -> bool:
        """Have the maintenance thread look whether anything is open, and end if not; it would within a minute."""
        self.contender.maintenance.nudge()
        return True

    def first(self, what: str) -> tuple[int, int, int]:
        """What was held at the first sample so called."""
        for line in (self.folder / f"{self.name}.health").read_text().splitlines():
            words = line.split()
            if words[0] == what:
                return int(words[2]), int(words[3]), int(words[4])
        raise AssertionError(f"no {what}")

    def objects(self) -> tuple[int, int]:
        """Objects that Python's garbage collector knows, and the broker connections among them."""
        gc.collect()
        known = gc.get_objects()
        return len(known), sum(isinstance(one, self.contender.connection_types) for one in known)


def give_back() -> None:
    """Have the C library give the system back what it keeps for later: it is not in use, and hides what is."""
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def sound(pool: Any) -> bool:
    """Whether the numbers of a pool that nobody uses are right."""
    stats = pool.stats()
    return bool(
        stats.lent == stats.waiting == stats.opening == 0
        and stats.size == stats.idle == stats.opened - sum(stats.closed.values())
        and stats.blocked is None
        and stats.outage is None
        and not stats.suspended
        and (stats.limit is None or stats.size <= stats.limit)
    )


def settles(condition: Callable[[], bool], timeout: float = SETTLED) -> bool:
    """Whether *condition* comes true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


#: What a batch says of a message, as the errors say it.
OUTCOMES = {
    "ACKED": "ok",
    "NACKED": "PublishNacked",
    "RETURNED": "PublishReturned",
    "UNKNOWN": "PublishUnknown",
}

#: What a thread does next, and how often.
ACTIONS: dict[Callable[[Worker, int, random.Random], None], float] = {
    Worker.publish: 25,
    Worker.publish_shared: 25,
    Worker.submit: 5,
    Worker.coroutines: 5,
    Worker.refused: 2,
    Worker.publish_to_redis: 15,
    Worker.producer_by_hand: 15,
    Worker.batch: 10,
    Worker.raw: 8,
    Worker.long_lease: 1,
    Worker.dropped_lease: 2,
    Worker.rest: 1,
    Worker.reset_all: 1,
    Worker.drain: 1,
    Worker.resize: 2,
    Worker.suspend: 1,
}


def main(folder: str, text: str) -> None:
    spec = json.loads(text)
    suffer()
    worker = Worker(Path(folder), spec)
    worker.begin()
    worker.run()
    worker.end()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
