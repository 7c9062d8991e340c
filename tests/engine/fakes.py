"""A clock that stands still, a spawner that waits to be told, and the one driver of these tests."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kombu_pools_ext.engine import Lease, Pool, PoolOptions, Share
from kombu_pools_ext.engine.maintenance import NoMaintenance
from kombu_pools_ext.engine.waiters import Waiter

#: Seconds until a test that hangs fails; no test of a working engine comes near it.
PATIENCE = 30.0


class FakeClock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Spawner:
    """Queues what the pool wants done in threads; `run()` does it, here."""

    def __init__(self) -> None:
        self.queued: deque[Callable[[], None]] = deque()
        self.able = True
        self.refused = 0

    def __call__(self, work: Callable[[], None], name: str) -> bool:
        if self.able:
            self.queued.append(work)
        else:
            self.refused += 1
        return self.able

    def run_one(self) -> None:
        self.queued.popleft()()

    def run(self) -> None:
        while self.queued:
            self.run_one()


class Keeper(NoMaintenance):
    """Writes down what maintenance is asked to do."""

    def __init__(self) -> None:
        self.watched: list[Any] = []
        self.nudges = 0

    def watch(self, pool: Pool[Any], quiet: float = 0.0) -> None:
        self.watched.append(pool)

    def nudge(self, pool: Any = None) -> None:
        self.nudges += 1


@dataclass(eq=False)
class Item:
    """What the driver opens; `closed` holds how it ended."""

    number: int
    users: int = 0
    alive: bool = True
    gone: bool = False
    ended: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Item {self.number}>"


#: A step of a script: raise it, call it (and take what it returns), or, None, succeed.
Step = BaseException | Callable[[], Any] | None


class Driver:
    """Opens, checks, closes and abandons items as its scripts say, and keeps a record.

    Each method has a queue of steps, used up one a call; when it is empty, the call succeeds. A step blocks by waiting
    for an event, and is slow by advancing the clock.
    """

    def __init__(self) -> None:
        self.opening: deque[Step] = deque()
        self.checking: deque[Step] = deque()
        self.closing: deque[Step] = deque()
        self.opened: list[Item] = []
        #: The seconds that openings in a caller's own thread were given.
        self.within: list[float] = []
        self.checked: list[Item] = []
        #: Those of them that had to answer.
        self.proved: list[Item] = []
        self.looked_at: list[Item] = []
        self.closed: list[tuple[Item, bool]] = []
        self.announced: list[Item] = []
        #: The seconds that each goodbye was given.
        self.goodbyes: list[float | None] = []
        #: Seconds between two keep-alives of what is opened from now on.
        self.keep_every: float | None = None
        self.keeping: deque[Step] = deque()
        self.kept: list[tuple[Item, bool]] = []
        self.abandoned: list[Item] = []
        self._lock = threading.Lock()

    @staticmethod
    def _act(script: deque[Step]) -> Any:
        try:
            step = script.popleft()
        except IndexError:
            return None
        if isinstance(step, BaseException):
            try:
                raise step
            finally:
                del step  # else a cycle: the error, its traceback, this frame
        return step() if step is not None else None

    def open_within(self, seconds: float) -> Item:
        self.within.append(seconds)
        return self.open()

    def open(self) -> Item:
        self._act(self.opening)
        with self._lock:
            item = Item(len(self.opened))
            self.opened.append(item)
        return item

    def check(self, item: Item, *, thorough: bool) -> bool:
        self.checked.append(item)
        if thorough:
            self.proved.append(item)
        answer = self._act(self.checking)
        return item.alive if answer is None else bool(answer)

    def is_hung_up(self, item: Item) -> bool:
        self.looked_at.append(item)
        return item.gone

    def keep_alive_every(self, item: Item) -> float | None:
        return self.keep_every

    def keep_alive(self, item: Item, *, lent: bool) -> bool:
        self.kept.append((item, lent))
        answer = self._act(self.keeping)
        return item.alive if answer is None else bool(answer)

    def may_pass(self, error: Exception) -> bool:
        return not isinstance(error, PermissionError)

    def close(self, item: Item, *, broken: bool, timeout: float | None = None) -> None:
        item.ended.append("broken" if broken else "closed")
        self.closed.append((item, broken))
        self.goodbyes.append(timeout)
        self._act(self.closing)

    def announce_close(self, item: Item) -> None:
        self.announced.append(item)

    def abandon(self, item: Item) -> None:
        item.ended.append("abandoned")
        self.abandoned.append(item)

    @property
    def open_now(self) -> list[Item]:
        return [item for item in self.opened if not item.ended]


class Listener:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []

    def wanted(self) -> None:
        """Comes before everything that is opened: not written down."""

    def opened(self) -> None:
        self.events.append(("opened",))

    def closed(self, reason: str) -> None:
        self.events.append(("closed", reason))

    def exhausted(self, reason: str) -> None:
        self.events.append(("exhausted", reason))


@dataclass
class Rig:
    """A pool on a clock that stands still, whose openings happen when the test runs them."""

    pool: Pool[Item]
    driver: Driver
    clock: FakeClock
    spawner: Spawner
    listener: Listener

    def ask(
        self, share: Share | None = None, *, blocking: bool = True, waits_for_broker: bool = True
    ) -> Waiter[Item]:
        """What a blocking `acquire` does until it blocks."""
        waiter: Waiter[Item] = Waiter(share, blocking=blocking, waits_for_broker=waits_for_broker)
        refusal = self.queue_up(waiter)
        assert refusal is None, refusal
        return waiter

    def queue_up(self, waiter: Waiter[Item]) -> str | None:
        """Let *waiter* in, and begin what that asks for; or say why it is refused."""
        with self.pool.lock:
            decision = self.pool.state.enter(waiter)
        self.pool.carry_out(decision, here=True)
        return decision.refusal

    def take(self, count: int = 1) -> list[Lease[Item]]:
        """Lease *count* items, opening what is needed."""
        waiters = [self.ask() for _ in range(count)]
        self.spawner.run()
        leases = [waiter.lease for waiter in waiters]
        assert None not in leases, self.pool
        return leases  # type: ignore[return-value]

    def fill(self, count: int) -> list[Item]:
        """Leave *count* items idle, each newer than the one before; in the order in which they were opened."""
        leases = self.take(count)
        items = [lease.item for lease in leases]
        for lease in leases:
            self.pool.release(lease)
        return items


def rig(limit: int | None = 2, **options: Any) -> Rig:
    """A pool under full control; *options* are those of `PoolOptions`, and `jitter`."""
    driver, clock, spawner, listener = Driver(), FakeClock(), Spawner(), Listener()
    pool: Pool[Item] = Pool(
        driver,
        name="tested",
        limit=limit,
        jitter=options.pop("jitter", lambda: 0.0),
        keeper=options.pop("keeper", NoMaintenance()),
        options=PoolOptions(**options),
        listener=listener,
        clock=clock,
        spawn=spawner,
    )
    return Rig(pool, driver, clock, spawner, listener)


def recover(pool: Pool[Any], count: int) -> list[Lease[Any]]:
    """Lease *count* items at the same time; fails if the pool has lost the room for them."""
    return [pool.acquire(timeout=PATIENCE) for _ in range(count)]


def assert_sound(pool: Pool[Any]) -> None:
    """No entry in two containers, none of the open ones in no container, no share that counts what is not lent."""
    with pool.lock:
        state = pool.state
        places = [*state.idle, *state.lent, *state.reserved.alive()]
        assert len(places) == len(set(places)), pool
        for entry in state.lent:
            share = entry.share
            assert share is None or share.lent.knows(entry)
        for entry in state.idle:
            assert entry.lender is None, pool
            assert entry.share is None or not entry.share.lent.knows(entry), pool


@dataclass
class Outcome:
    """What a function in another thread came to."""

    value: Any = None
    error: BaseException | None = None


@contextmanager
def in_thread(function: Callable[[], Any]) -> Iterator[Outcome]:
    """Run `function` in a thread during the block, and wait for its end after it."""
    outcome = Outcome()

    def run() -> None:
        try:
            outcome.value = function()
        except BaseException as error:
            outcome.error = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield outcome
    thread.join(PATIENCE)
    assert not thread.is_alive(), "the thread hangs"


def wait_until(condition: Callable[[], bool]) -> None:
    """Until another thread has come so far; nothing depends on how often it looks."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def min_of(measure: Callable[[], float], enough: float) -> float:
    """The least measurement, for the others may be a busy machine's: until it is *enough*, or patience ends."""
    deadline = time.monotonic() + PATIENCE
    least = measure()
    while least > enough and time.monotonic() < deadline:
        least = min(least, measure())
    return least
