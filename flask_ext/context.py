"""The producers that an application context holds. They are lent at the first use, and released when it ends.

A context may be active in several threads, greenlets and asyncio tasks, because :func:`contextvars.copy_context` and
what is built on it copy it. Each of them is a *holder* with its own producers.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter, methodcaller
from typing import Any

from flask import current_app, g
from kombu.exceptions import LimitExceeded

from kombu_pools_ext import Pools
from kombu_pools_ext.broker.guarded import Guarded, guarded
from kombu_pools_ext.engine.loaded import loaded

__all__ = ["ContextLender", "lender_of", "producer_of", "release_producers"]

logger = logging.getLogger("kombu_pools_ext.flask")

#: The only name that is used in ``g``. Flask decides which contexts share a ``g``.
NAME = "_kombu_pools"


def _current_task() -> Any:
    asyncio: Any = loaded("asyncio")
    if asyncio is None:
        return None
    try:
        return asyncio.current_task()
    except RuntimeError:
        # No event loop runs in this thread.
        return None


def _thread_has_ended(thread: Any) -> bool:
    return not thread.is_alive()


def _holder() -> tuple[weakref.ref[Any], Callable[[Any], Any]]:
    """Return the current task, greenlet or thread, and a function that tells whether it has ended."""
    task = _current_task()
    if task is not None:
        return weakref.ref(task), methodcaller("done")
    greenlet: Any = loaded("greenlet")
    if greenlet is not None:
        current = greenlet.getcurrent()
        # If threads are greenlets, the current thread does not end with the greenlet: gevent's thread objects are
        # always alive, and eventlet returns the main thread for some greenlets.
        if id(current) == threading.get_ident():
            return weakref.ref(current), attrgetter("dead")
    return weakref.ref(threading.current_thread()), _thread_has_ended


class _Loan:
    """A lent producer and its holder."""

    __slots__ = ("_has_ended", "_holder", "producer", "thread")

    def __init__(
        self, producer: Guarded, holder: weakref.ref[Any], has_ended: Callable[[Any], Any]
    ) -> None:
        self.producer = producer
        self.thread = threading.get_ident()
        self._holder = holder
        self._has_ended = has_ended

    @property
    def is_good(self) -> bool:
        """Whether the producer can publish."""
        return not self.producer.released and not self.producer.broken

    @property
    def is_over(self) -> bool:
        """Whether the holder has ended."""
        holder = self._holder()
        return holder is None or bool(self._has_ended(holder))


class _Held:
    """The loans of one context, by alias and holder.

    Several threads change them at the same time, so each step is one atomic operation of the dict. A holder is
    identified by a weak reference, not by the number of a thread or greenlet, which is reused after its end.
    """

    def __init__(self, app: str) -> None:
        self._app = app
        self._loans: dict[tuple[str, weakref.ref[Any]], _Loan] = {}
        self.ended = False

    def find(self, using: str) -> _Loan | None:
        """Return the loan of the current holder, or take over one whose holder has ended; ``None`` if there is none."""
        holder, _ = _holder()
        loan = self._loans.get((using, holder))
        if loan is not None:
            return loan
        for other, left in list(self._loans.items()):
            if other[0] == using and left.is_over and self._loans.pop(other, None) is left:
                self.keep(using, left.producer)
                return self._loans.get((using, holder))
        return None

    def keep(self, using: str, producer: Guarded) -> None:
        """Keep *producer* for the current holder."""
        holder, has_ended = _holder()
        self._loans[using, holder] = _Loan(producer, holder, has_ended)

    def drop(self, using: str) -> None:
        """Forget the loan of the current holder."""
        self._loans.pop((using, _holder()[0]), None)

    def count(self, using: str) -> int:
        """Return how many producers of *using* are lent."""
        return sum(
            key[0] == using and not loan.producer.released
            for key, loan in list(self._loans.items())
        )

    def end(self, error: BaseException | None) -> None:
        """Release all producers. One with which another thread publishes now is released after that publish."""
        self.ended = True
        mine = threading.get_ident()
        while self._loans:
            try:
                (using, _), loan = self._loans.popitem()
            except KeyError:
                # Another thread has just taken the last one.
                return
            try:
                # An error of this thread does not concern the connection of another thread.
                loan.producer.dismiss(error if loan.thread == mine else None)
            except Exception:
                logger.exception("app %r: the producer of %r was not given back", self._app, using)

    def __del__(self) -> None:
        # A thread may go on after the end of its context. What it acquires then is released with the last reference.
        self.end(None)


def _held() -> _Held:
    found: _Held | None = getattr(g, NAME, None)
    if found is not None:
        return found
    # setdefault() decides the race of two threads for the first producer.
    held: _Held = vars(g).setdefault(NAME, _Held(current_app.name))
    return held


@contextmanager
def _noting_own_producers(using: str) -> Iterator[None]:
    """Add to an error of the block that no producer was free how many of them this context holds itself."""
    try:
        yield
    except LimitExceeded as error:
        if count := _held().count(using):
            error.add_note(
                f"this application context itself holds {count} of {using!r}, in other threads or tasks; "
                "LIMIT has to leave room for one each, or they release theirs: with pools.producer as producer: …"
            )
        raise


def producer_of(pools: Pools, using: str, *, block: bool, timeout: float | None) -> Guarded:
    """Return the current holder's producer of *using* in this context; lend one if it has no usable one."""
    loan = _held().find(using)
    if loan is not None:
        if loan.is_good:
            return loan.producer
        _held().drop(using)
        loan.producer.release()
    while True:
        held = _held()
        with _noting_own_producers(using):
            producer = guarded(pools.producers[using].acquire(block=block, timeout=timeout))
        held.keep(using, producer)
        # The context may have ended meanwhile in another thread, which has either released this producer or missed it.
        if not held.ended:
            return producer
        held.drop(using)
        producer.dismiss()


class ContextLender:
    """Lends the context's own producer for one message. It stays lent until the context ends."""

    def __init__(self, pools: Pools, using: str) -> None:
        self._pools = pools
        self._using = using

    @contextmanager
    def acquire(self, block: bool = False, timeout: float | None = None) -> Iterator[Any]:
        """As :meth:`.ProducerPool.acquire`. Another producer is lent only if the connection of the first one broke."""
        yield producer_of(self._pools, self._using, block=block, timeout=timeout)


class _AnotherLender:
    """Lends another producer for one message, in a context that holds some already."""

    def __init__(self, pools: Pools, using: str) -> None:
        self._pools = pools
        self._using = using

    @contextmanager
    def acquire(self, block: bool = False, timeout: float | None = None) -> Iterator[Any]:
        with _noting_own_producers(self._using):
            producer = self._pools.producers[self._using].acquire(block=block, timeout=timeout)
        with producer:
            yield producer


def lender_of(pools: Pools, using: str) -> Any:
    """Return what lends a producer for one message in a context that holds some; ``None`` if it holds none."""
    held: _Held | None = getattr(g, NAME, None)
    if held is None:
        return None
    loan = held.find(using)
    # Not while it publishes, because a handler that is called within a publish must not use the same producer.
    if loan is not None and not loan.producer.released and not loan.producer.publishing:
        # A context that holds a producer and waits for a second one could wait for itself.
        return ContextLender(pools, using)
    return _AnotherLender(pools, using) if held.count(using) else None


def release_producers(error: BaseException | None) -> None:
    """Release the producers of the context. A connection that broke, or that *error* concerns, is not lent again.

    Flask calls this when a context ends. It never raises, because other teardown functions come after it.
    """
    held: _Held | None = vars(g).pop(NAME, None)
    if held is not None:
        held.end(error)
