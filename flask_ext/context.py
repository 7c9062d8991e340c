"""The producers that an application context holds: lent at the first use, given back at its end.

A context may be at work in several threads, greenlets and asyncio tasks: :func:`contextvars.copy_context` and what is
built on it take it there. Each of them is a holder, with producers of its own.
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
from kombu_pools_ext.broker.guarded import guarded
from kombu_pools_ext.engine.loaded import loaded

__all__ = ["ContextLender", "lender_of", "producer_of", "release_producers"]

logger = logging.getLogger("kombu_pools_ext.flask")

#: The one name in ``g``. Which contexts share a ``g`` is Flask's affair.
NAME = "_kombu_pools"


def _current_task() -> Any:
    asyncio: Any = loaded("asyncio")
    if asyncio is None:
        return None
    try:
        return asyncio.current_task()
    except RuntimeError:
        # No loop runs in this thread.
        return None


def _thread_has_ended(thread: Any) -> bool:
    return not thread.is_alive()


def _holder() -> tuple[weakref.ref[Any], Callable[[Any], Any]]:
    """Whoever asks, and what tells whether it has ended."""
    task = _current_task()
    if task is not None:
        return weakref.ref(task), methodcaller("done")
    greenlet: Any = loaded("greenlet")
    if greenlet is not None:
        current = greenlet.getcurrent()
        # Where threads are greenlets, each has an identity of its own, but no thread that ends with it: gevent's
        # stand-ins are always alive, and eventlet says the main thread for some.
        if id(current) == threading.get_ident():
            return weakref.ref(current), attrgetter("dead")
    return weakref.ref(threading.current_thread()), _thread_has_ended


class _Loan:
    """A producer, and whose it is."""

    __slots__ = ("_has_ended", "_holder", "producer", "thread")

    def __init__(
        self, producer: Any, holder: weakref.ref[Any], has_ended: Callable[[Any], Any]
    ) -> None:
        self.producer = producer
        self.thread = threading.get_ident()
        self._holder = holder
        self._has_ended = has_ended

    @property
    def is_good(self) -> bool:
        """Whether it can be published with."""
        return not self.producer.released and not self.producer.broken

    @property
    def is_over(self) -> bool:
        """Whether its holder has ended."""
        holder = self._holder()
        return holder is None or bool(self._has_ended(holder))


class _Held:
    """What one context holds, by alias and holder.

    Threads change it at the same time: each step is one of the dict's own. A holder is known by a weak reference, which
    nobody else's equals: the number of a thread or greenlet that has ended is soon another one's.
    """

    def __init__(self, app: str) -> None:
        self._app = app
        self._loans: dict[tuple[str, weakref.ref[Any]], _Loan] = {}
        self.ended = False

    def find(self, using: str) -> _Loan | None:
        """The loan of whoever asks, if it is there; one whose holder has ended is there for the next."""
        holder, _ = _holder()
        loan = self._loans.get((using, holder))
        if loan is not None:
            return loan
        for other, left in list(self._loans.items()):
            if other[0] == using and left.is_over and self._loans.pop(other, None) is left:
                self.keep(using, left.producer)
                return self._loans.get((using, holder))
        return None

    def keep(self, using: str, producer: Any) -> None:
        """Hold *producer* for whoever asks."""
        holder, has_ended = _holder()
        self._loans[using, holder] = _Loan(producer, holder, has_ended)

    def drop(self, using: str) -> None:
        """Hold nothing any more for whoever asks."""
        self._loans.pop((using, _holder()[0]), None)

    def count(self, using: str) -> int:
        """How many producers of *using* are lent."""
        return sum(
            key[0] == using and not loan.producer.released
            for key, loan in list(self._loans.items())
        )

    def end(self, error: BaseException | None) -> None:
        """Give everything back; what another thread publishes with at this moment, when it is done with that."""
        self.ended = True
        mine = threading.get_ident()
        while self._loans:
            try:
                (using, _), loan = self._loans.popitem()
            except KeyError:
                # Another thread has just taken the last one.
                return
            try:
                # Whatever happened here says nothing of another thread's connection.
                loan.producer.dismiss(error if loan.thread == mine else None)
            except Exception:
                logger.exception("app %r: the producer of %r was not given back", self._app, using)

    def __del__(self) -> None:
        # A thread may outlive the context that it works in: what it took after the end goes with the last copy.
        self.end(None)


def _held() -> _Held:
    found: _Held | None = getattr(g, NAME, None)
    if found is not None:
        return found
    # Closes the race of two threads for the first producer.
    held: _Held = vars(g).setdefault(NAME, _Held(current_app.name))
    return held


@contextmanager
def _others_named(using: str) -> Iterator[None]:
    """Within, an error because nothing is free says that the context itself holds some."""
    try:
        yield
    except LimitExceeded as error:
        if count := _held().count(using):
            error.add_note(
                f"this application context holds {count} of {using!r} itself, in other threads or tasks; "
                "LIMIT has to leave room for one each, or those give theirs back: with pools.producer as producer: …"
            )
        raise


def producer_of(pools: Pools, using: str, *, block: bool, timeout: float | None) -> Any:
    """The producer of the alias *using* that whoever asks has in this context; one just lent, if it has no good one."""
    loan = _held().find(using)
    if loan is not None:
        if loan.is_good:
            return loan.producer
        _held().drop(using)
        loan.producer.release()
    while True:
        held = _held()
        with _others_named(using):
            producer = guarded(pools.producers[using].acquire(block=block, timeout=timeout))
        held.keep(using, producer)
        # Closes the race with the end of the context in another thread, which may have missed this one, or taken it.
        if not held.ended:
            return producer
        held.drop(using)
        producer.dismiss()


class ContextLender:
    """Lends the context's own producer, and does not take it back: the context does, at its end."""

    def __init__(self, pools: Pools, using: str) -> None:
        self._pools = pools
        self._using = using

    @contextmanager
    def acquire(self, block: bool = False, timeout: float | None = None) -> Iterator[Any]:
        """As a producer pool's; another producer is lent only where the connection of the first one broke."""
        yield producer_of(self._pools, self._using, block=block, timeout=timeout)


class _LenderBesides:
    """Lends a producer for one message, where others in the same context hold some."""

    def __init__(self, pools: Pools, using: str) -> None:
        self._pools = pools
        self._using = using

    @contextmanager
    def acquire(self, block: bool = False, timeout: float | None = None) -> Iterator[Any]:
        with _others_named(self._using):
            producer = self._pools.producers[self._using].acquire(block=block, timeout=timeout)
        with producer:
            yield producer


def lender_of(pools: Pools, using: str) -> Any:
    """What lends a producer for one message in a context that holds some; ``None`` in one that holds none."""
    held: _Held | None = getattr(g, NAME, None)
    if held is None:
        return None
    loan = held.find(using)
    # Else a handler, called in the middle of a publish, would get into that.
    if loan is not None and not loan.producer.released and not loan.producer.publishing:
        # A context that holds a producer and waits for a second one could wait for itself.
        return ContextLender(pools, using)
    return _LenderBesides(pools, using) if held.count(using) else None


def release_producers(error: BaseException | None) -> None:
    """Give back what the context holds; a connection that broke, or that *error* is about, is not lent again.

    Called by Flask at the end of a context. It never raises: the teardowns of others come after it.
    """
    held: _Held | None = vars(g).pop(NAME, None)
    if held is not None:
        held.end(error)
