"""Carrying out openings: in the background, as many at once as the breaker allows."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from .decision import Decision
from .log_handlers import while_opening
from .openings import Opening
from .pool_interface import PoolInterface

__all__ = ["THREAD", "Opener"]

T = TypeVar("T")

#: The name of a thread that opens.
THREAD = "kombu-pools-open"


class Opener(Generic[T]):
    """Opens items for a pool, in threads, or in a waiting caller's where none can be started."""

    def __init__(self, pool: PoolInterface[T]) -> None:
        self._pool = pool
        #: Whether the latest thread could not be started.
        self.threadless = False

    def start(self, count: int, deadline: float | None = None, *, here: bool = False) -> None:
        """Carry out *count* planned openings in threads.

        If none can be started, this caller carries them out if *here*; otherwise a waiting caller does.

        :param deadline: when this caller has to stop.
        """
        for _ in range(count):
            if self._start_thread():
                continue
            if here:
                self.open_all(deadline)
            else:
                self.leave()
            return

    def leave(self) -> None:
        """Have the first waiting caller carry out the planned openings, within its own time-out."""
        self._pool.locked(self._pool.state.leave_openings)

    def _start_thread(self) -> bool:
        self.threadless = not self._pool.spawn(self.open_all, THREAD)
        return not self.threadless

    def open_all(self, deadline: float | None = None) -> None:
        """Carry out planned openings until there are none: the body of a thread.

        :param deadline: of whoever does it in place of such a thread, if there is one.
        """
        while deadline is None or self._pool.clock() < deadline:
            if not self._open_next(deadline):
                return
        # The deadline has passed; a waiting caller carries out the rest.
        self.leave()

    def _open_next(self, deadline: float | None) -> bool:
        """Carry out one opening; whether there are more for this thread."""
        # A frame of its own for each: a borrower may keep the error of an earlier one, with all its frames.
        pool = self._pool
        opening = pool.insist(lambda: pool.state.openings.claim(pool.clock()))
        if opening is None:
            return False
        decision = self._open(opening, deadline)
        if not decision.openings:
            pool.carry_out(decision, deadline)
            return False
        # One of the openings that this one made possible is this thread's own next turn.
        decision.openings -= 1
        pool.carry_out(decision, deadline)
        return True

    def _open(self, opening: Opening, deadline: float | None) -> Decision[T]:
        """Open an item, or tell who waits that it failed."""
        pool = self._pool
        pool.reports.tell("wanted")
        try:
            if deadline is None:
                item = while_opening(pool, pool.driver.open)
            else:
                within = max(0.0, deadline - pool.clock())
                item = while_opening(pool, lambda: pool.driver.open_within(within))
        except Exception as error:
            return self._failed(opening, error)
        except BaseException:
            self._interrupted(opening)
            raise
        keep_every = pool.driver.keep_alive_every(item)
        # Closes the race with everything that happened meanwhile: a lowered limit, a drain, a close.
        opened = pool.insist(lambda: pool.state.opened(opening, item, keep_every))
        pool.look_after(opened.due)
        if opened.outage is not None:
            pool.reports.outage_ends(opened.outage)
        pool.reports.tell("opened")
        return opened

    def _interrupted(self, opening: Opening) -> None:
        """This thread was interrupted, which says nothing of the broker: others go on, and it opens nothing more."""
        pool = self._pool
        openings = pool.insist(lambda: pool.state.opening_interrupted(opening)).openings
        if openings and not all(self._start_thread() for _ in range(openings)):
            pool.insist(pool.state.openings.cancel_unclaimed)

    def _failed(self, opening: Opening, error: Exception) -> Decision[T]:
        pool = self._pool
        may_pass = pool.driver.may_pass(error)
        # It is kept as long as the outage lasts: not with the frames, and all that they hold.
        cause: BaseException | None = error
        while cause is not None:
            cause.__traceback__ = None
            cause = cause.__cause__ or cause.__context__

        def decide() -> Any:
            return pool.state.opening_failed(
                opening, error, lambda: pool.refusals.outage(pool.state), may_pass=may_pass
            )

        failed = pool.insist(decide)
        if pool.options.min_idle:
            # Maintenance begins with the first connection, and there may be none yet: it has to go on trying.
            pool.look_after()
        if failed.first:
            pool.reports.outage_begins(error, may_pass=may_pass)
        return Decision(failed.openings)
