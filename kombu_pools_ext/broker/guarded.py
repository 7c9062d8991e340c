"""Producers that somebody else may take back: not in the middle of a use, and never used by two threads at once."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, cast

from ..errors import LeaseError
from .batch import DEFAULT_SIZE, Batch
from .event_loops import loops, warn_of_blocking
from .leased_producer import LeasedProducer

__all__ = ["Guarded", "guarded"]


class _Guard:
    """Who uses a producer at the moment: one thread, in a publish or in the block of a batch.

    Taking the producer back dismisses it; the last of the two threads that leaves it gives it back.
    """

    __slots__ = ("_depth", "_lock", "_pool", "_user", "dismissed", "publishing")

    def __init__(self, pool: Any) -> None:
        # Looked up now, not at import: gevent and eventlet may have replaced it.
        self._lock = threading.Lock()
        self._user: int | None = None
        self._depth = 0
        self._pool = pool
        #: Whether a publish is under way.
        self.publishing = False
        #: Whether it is to be given back as soon as it is not in use.
        self.dismissed = False

    def enter(self) -> None:
        """Begin to use it; waits for the use by another thread to end.

        :raises LeaseError: if that takes longer than a publish may.
        """
        me = threading.get_ident()
        if self._user != me:
            seconds = self._pool.confirm_timeout
            if not self._lock.acquire(timeout=seconds):
                raise LeaseError(
                    f"pool {self._pool.name!r}: another thread has been using this producer for {seconds:.3g} s; "
                    "ask for one of your own in each thread"
                )
            self._user = me
        self._depth += 1

    def leave(self, view: Guarded) -> None:
        """End what :meth:`enter` began; a producer that was dismissed meanwhile is given back."""
        self._depth -= 1
        if not self._depth:
            self._user = None
            self._lock.release()
            if self.dismissed:
                self.end(view, None)

    def end(self, view: Guarded, error: BaseException | None) -> None:
        """Give *view* back, unless it is in use: then the thread that uses it does."""
        # Closes the race with a thread that has just left it, and looks whether it was dismissed: of two releases the
        # second does nothing.
        if self._lock.acquire(blocking=False):
            # A log handler that publishes on it meanwhile must not wait for its own thread.
            self._user = threading.get_ident()
            try:
                view.__exit__(type(error) if error else None, error, None)
            finally:
                self._user = None
                self._lock.release()


class _GuardedBatch:
    """A batch whose block is one use of its producer."""

    def __init__(self, view: Guarded, batch: Any) -> None:
        self._view = view
        self._batch = batch

    def __enter__(self) -> Any:
        guard = self._view._guard
        guard.enter()
        try:
            return self._batch.__enter__()
        except BaseException:
            guard.leave(self._view)
            raise

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        try:
            return self._batch.__exit__(exc_type, error, traceback)
        finally:
            self._view._guard.leave(self._view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)


class Guarded(LeasedProducer):
    """Mixed into the class of a lent producer, by :func:`guarded`."""

    __slots__ = tuple[str, ...]()

    _guard: _Guard

    def publish(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        if loops.running() is not None:
            warn_of_blocking("publish()")
        guard = self._guard
        guard.enter()
        before, guard.publishing = guard.publishing, True
        try:
            return super().publish(body, *args, **kwargs)
        finally:
            guard.publishing = before
            guard.leave(self)

    def batch(self, max_size: int = DEFAULT_SIZE) -> Batch:
        return cast("Batch", _GuardedBatch(self, super().batch(max_size)))

    @property
    def publishing(self) -> bool:
        """Whether a publish is under way: one that begins now, in the same thread, would get into it."""
        return self._guard.publishing

    def dismiss(self, error: BaseException | None = None) -> None:
        """Give the producer back: now, or at the end of the publish, or batch, that is under way in another thread.

        :param error: what ended its use, where something did: it decides whether the connection may be lent again.
        """
        guard = self._guard
        guard.dismissed = True
        guard.end(self, error)


class _GuardedTypes(dict[type[Any], "type[Any]"]):
    """By class of a lent producer, the same with a guard."""

    def __missing__(self, view_type: type[Any]) -> type[Any]:
        names = {"__slots__": (), "__module__": view_type.__module__, "__doc__": view_type.__doc__}
        guarded_type = self[view_type] = type(view_type.__name__, (Guarded, view_type), names)
        return guarded_type


_guarded_types = _GuardedTypes()


def guarded(view: LeasedProducer) -> Guarded:
    """Put a guard on *view*, a producer that has just been lent: :meth:`Guarded.dismiss` gives it back."""
    lent = cast("Guarded", view)
    lent._guard = _Guard(view._pool)
    view.__class__ = _guarded_types[view.__class__]
    return lent
