"""What a pool knows: its containers, and what they look like from outside.

Counts are the lengths of the containers, never kept beside them. All of it is guarded by the pool's lock, but for what
the short way does (:meth:`.Pool.acquire`): it takes the last one of ``idle``, or puts one there, at any moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from .breaker import Breaker
from .counters import Counters, PoolStats
from .lease import Entry, Gate, Share
from .options import PoolOptions
from .tickets import Openings
from .waiting import WaitQueue, Watcher
from .weakly import Holding, Weakly

if TYPE_CHECKING:
    from .pool import Pool

__all__ = ["State"]

T = TypeVar("T")


class State(Generic[T]):
    """Containers, limit, generation and counters of one pool; to be used under the pool's lock.

    :param pool: what the leases belong to.
    """

    def __init__(
        self,
        *,
        limit: int | None,
        options: PoolOptions,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        pool: Pool[T],
    ) -> None:
        self.limit = limit
        self.options = options
        self.closed = False
        #: Who asks while the pool is suspended: to ``"wait"`` for its end, or to ``"fail"``.
        self.suspended: Literal["fail", "wait"] | None = None
        #: Closed or suspended; one look on the hot path.
        self.shut = False
        self.generation = 0
        self.counters = Counters()
        #: Callers so far that came by the lock, and the loans made there; all others are counted by their entries.
        self.callers = 0
        self.loans = 0
        #: Loans of those that are closed, or being closed.
        self.past_loans = 0
        #: The warmest is the last.
        self.idle: list[Entry[T]] = []
        #: Idle ones at which upkeep is at work; held by its thread.
        self.reserved: Weakly[Entry[T]] = Weakly()
        #: Held by the threads that close them.
        self.closing: Weakly[Entry[T]] = Weakly()
        self.openings = Openings()
        self.breaker = Breaker(jitter)
        #: Those that somebody has asked with.
        self.shares: Weakly[Share] = Weakly()
        #: Those that are shut.
        self.shut_gates: set[Gate] = set()
        #: Who is to be told when something is closed; held by those who wait.
        self.watchers: Weakly[Watcher] = Weakly()
        #: Who opens what ``min_idle`` asks for himself; held by those who wait until it is there.
        self.warming: Weakly[object] = Weakly()
        self.waiters: WaitQueue[T] = WaitQueue()
        #: Everything open, whatever its state: what counts, and what a forked child has to abandon.
        self.held: Holding[Entry[T], T] = Holding()
        self.clock = clock
        self.jitter = jitter
        self.pool = pool
        #: Entries so far.
        self.numbers = 0
        self.keep = options.keep
        #: Whether another pool has replaced this one: a returned item serves a waiting caller, or is closed.
        self.replaced = False
        #: Whether more may be there than the limit says: only after it was lowered.
        self.shrunk = False

    # -- what it looks like ------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Items that the pool answers for, whatever their state."""
        return len(self.held) + len(self.openings)

    @property
    def lent_count(self) -> int:
        """How many are lent, or on their way from or to the idle ones."""
        return self._lent_beside(len(self.idle))

    def _lent_beside(self, idle: int) -> int:
        return max(0, len(self.held) - idle - len(self.reserved) - len(self.closing))

    @property
    def lent(self) -> list[Entry[T]]:
        """What is lent, each held; for what happens seldom."""
        return [entry for entry in self.held.alive() if entry.engine is not None]

    def lent_of(self, share: Share) -> int:
        """How many are lent with *share*."""
        return len([entry for entry in self.lent if entry.share is share])

    @property
    def acquires(self) -> int:
        """Callers so far."""
        by_entry = sum(entry.loan for entry in self.held.alive())
        return self.callers + self.past_loans + by_entry - self.loans

    @property
    def max_waiting(self) -> int | None:
        """How many callers may wait; ``None`` is any number."""
        return self.options.waiting_limit(self.limit)

    def describe(self) -> str:
        """The state in words, for a ``repr`` or an error."""
        limit = "unlimited" if self.limit is None else str(self.limit)
        parts = [f"{len(self.idle)} idle", f"{self.lent_count} lent"]
        others = (
            ("opening", self.openings),
            ("reserved", self.reserved),
            ("closing", self.closing),
        )
        parts += [f"{len(container)} {word}" for word, container in others if len(container)]
        state = f"{self.size} of {limit} ({', '.join(parts)}), {len(self.waiters)} waiting"
        if self.breaker.failures:
            state += f", down for {self.clock() - self.breaker.since:.3g} s"
        for gate in self.shut_gates:
            state += f", {gate.reason}"
        if self.suspended:
            state += ", suspended"
        return state + (", closed" if self.closed else "")

    def stats(self, name: str) -> PoolStats:
        """A snapshot."""
        counters = self.counters
        # Once: it may change in between.
        idle = len(self.idle)
        return PoolStats(
            name=name,
            limit=self.limit,
            size=self.size,
            idle=idle,
            lent=self._lent_beside(idle),
            opening=len(self.openings),
            waiting=len(self.waiters),
            acquires=self.acquires,
            waits=counters.waits,
            timeouts=counters.timeouts,
            refused=counters.refused,
            opened=counters.opened,
            open_failures=counters.open_failures,
            closed=dict(counters.closed),
            seconds_waited=counters.seconds_waited,
            outage=self.clock() - self.breaker.since if self.breaker.failures else None,
            blocked=next((gate.reason for gate in self.shut_gates), None),
            suspended=self.suspended is not None,
        )
