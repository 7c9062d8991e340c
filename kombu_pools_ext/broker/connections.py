"""The pool of connections."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import kombu
from kombu.connection import ConnectionPool as KombuConnectionPool

from .. import events
from ..engine import Gate, Pool, PoolOptions
from ..engine.counters import Drained, PoolStats
from ..engine.lease import Entry
from ..errors import LeaseError
from ..masking import mask_url
from .driver import ConnectionDriver, OpenConnection, errors_for
from .identity import with_host
from .redis_sockets import ANSWER_TIMEOUT
from .validate import valid_limit, valid_seconds, valid_timeout
from .views import RELEASED_STATE, ConnectionView

__all__ = ["ConnectionPool", "PoolFace", "masked_uri"]

_new_view = ConnectionView.__new__


def masked_uri(connection: kombu.Connection) -> str:
    """The URI of *connection* and its alternates, for people to read: without passwords."""
    return ";".join(
        [with_host(connection).as_uri(), *(mask_url(url) for url in (connection.alt or ())[1:])]
    )


class PoolFace:
    """What a connection pool and a producer pool have in common: kombu's interface over an engine."""

    engine: Pool[Any]
    _closed: Any

    def __init__(self, preload: Any = None, close_after_fork: Any = None) -> None:
        # kombu's arguments: nothing is preloaded (MIN_IDLE does that), and every pool survives a fork.
        self.preload = preload or 0
        self.close_after_fork = True if close_after_fork is None else close_after_fork
        #: Whether :func:`kombu_pools_ext.set_limit` governs this pool.
        self.follows_global_limit = False

    @property
    def name(self) -> str:
        """What errors, logs and tables call the pool: alias and URI, without a password."""
        return self.engine.name

    @property
    def limit(self) -> int | None:
        """Most leases at a time; ``None`` is unlimited. Setting it resizes, and ends following the global limit."""
        return self._get_limit()

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self.resize(limit)

    def _get_limit(self) -> int | None:
        return self.engine.limit

    def resize(
        self,
        limit: int | None,
        force: bool = False,
        ignore_errors: bool = False,
        reset: bool = False,
    ) -> None:
        """Set the limit, while the pool is in use.

        :param limit: most leases at a time; 0 or ``None`` is unlimited.
        :param force: go below what is lent; what is over the limit is closed as it comes back.
        :param ignore_errors: as *force*.
        :param reset: close the old connections too: the idle ones now, the lent ones as they come back.
        :raises TypeError, ValueError: for a limit that is none.
        :raises RuntimeError: if more is lent than *limit*; nothing has changed then.
        """
        self._resize(valid_limit(limit), force=force or ignore_errors)
        self.follows_global_limit = False
        if reset:
            self.force_close_all(close_pool=False)

    def _resize(self, limit: int | None, *, force: bool) -> None:
        self.engine.resize(limit, force=force)

    @property
    def lent(self) -> int:
        """Leases out at the moment."""
        return self.engine.lent

    def force_close_all(self, close_pool: bool = True) -> Drained:
        """Close what is idle now, and what is lent when it comes back.

        :param close_pool: refuse every later acquire, and fail at once whoever waits.
        :returns: how many were closed, and how many are still lent.
        """
        return self.engine.close() if close_pool else self.engine.drain()

    def suspend(self, mode: Literal["fail", "wait"] = "wait") -> None:
        """Lend nothing and open nothing until :meth:`resume`; what is lent comes back as ever.

        It holds for the connections and the producers of the broker, which are one pool.

        :param mode: whoever asks, or waits already, is to ``"wait"`` for the end until his time-out, or to ``"fail"``
            at once with :class:`~.PoolSuspended`, as whoever has no time-out does in both.
        :raises ValueError: for another mode.
        """
        self.engine.suspend(mode)

    def resume(self) -> None:
        """End :meth:`suspend`: those who waited meanwhile come first."""
        self.engine.resume()

    def wait_ready(self, timeout: float) -> None:
        """Return when ``MIN_IDLE`` connections are open, or one, where none is asked for.

        It waits through an outage, however long that has lasted.

        :param timeout: seconds.
        :raises ConnectTimeout: if there are fewer by then; ``__cause__`` is what the last attempt failed of.
        :raises TypeError, ValueError: for a *timeout* that is none.
        """
        self.engine.wait_ready(valid_seconds(timeout))

    def drain(self, timeout: float | None = None) -> Drained:
        """Close what is idle now, and what is lent when it comes back; the pool stays usable.

        :param timeout: seconds to wait for what is lent; ``None`` is not to wait.
        :returns: how many were closed, and how many are still lent.
        :raises TypeError, ValueError: for a *timeout* that is none.
        """
        return self.engine.drain(None if timeout is None else valid_seconds(timeout))

    def begin_drain(self) -> Callable[[float | None], Drained]:
        """The first half of :meth:`drain`.

        :returns: the second half, which takes a deadline of ``time.monotonic``, or ``None`` not to wait.
        """
        return self.engine.begin_drain()

    def stats(self) -> PoolStats:
        """A snapshot of the pool, and its totals."""
        return self.engine.stats()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {self.engine.describe()}>"


class _Listener:
    """Passes the engine's events on, with the pool they are about."""

    def __init__(self, pool: PoolFace) -> None:
        self._pool = pool

    def opened(self) -> None:
        events.connection_opened.send(pool=self._pool)

    def closed(self, reason: str) -> None:
        events.connection_closed.send(pool=self._pool, reason=reason)

    def exhausted(self, reason: str) -> None:
        events.pool_exhausted.send(pool=self._pool, reason=reason)


class ConnectionPool(PoolFace, KombuConnectionPool):
    """A pool of connections like *connection*, which itself stays unconnected and unused.

    :param connection: the broker, and every setting of the connections.
    :param limit: most connections at a time; ``None`` or 0 is unlimited.
    :param preload: kombu's; has no effect (``min_idle`` has).
    :param options: times and bounds, by default those of ``docs/reference/settings.md``.
    :param name: stands in errors, logs and tables; by default the URI without its password.
    :param confirm_timeout: seconds that a publish waits for its confirm, where the connection asks for confirms.
    """

    def __init__(
        self,
        connection: kombu.Connection,
        limit: int | None = None,
        preload: Any = None,
        close_after_fork: Any = None,
        *,
        options: PoolOptions | None = None,
        name: str | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        # Not kombu's __init__: it registers a fork hook that shuts the parent's sockets down.
        PoolFace.__init__(self, preload, close_after_fork)
        # A lease ends, and its settings with it.
        self.connection = (
            connection.clone() if isinstance(connection, ConnectionView) else connection
        )
        self.confirm_timeout = confirm_timeout
        #: By thread, the lease that a producer pool is preparing: there, acquire() returns that one.
        self.pending: dict[int, ConnectionView] = {}
        #: What every producer on these connections has to pass; shut while the broker takes no messages.
        self.publishing = Gate()
        # Bound once: this is on the hot path.
        self._make = self.make_view
        self._driver = ConnectionDriver(
            lambda: self.connection,
            lambda: self.name,
            answer_timeout=ANSWER_TIMEOUT if confirm_timeout is None else confirm_timeout,
            on_blocked=self.publishing_blocked,
            on_unblocked=self.publishing_unblocked,
        )
        self.engine: Pool[OpenConnection] = Pool(
            self._driver,
            name=name if name is not None else masked_uri(connection),
            limit=valid_limit(limit),
            options=options if options is not None else PoolOptions(),
            errors=errors_for(),
            listener=_Listener(self),
        )

    def acquire(self, block: bool = False, timeout: float | None = None) -> ConnectionView:
        """Lend an open connection; to be given back with ``release()``, or by leaving its ``with`` block.

        :param block: wait without end for a connection, unless there is a *timeout*.
        :param timeout: seconds for everything together: waiting, connecting, checking. Implies waiting.
        :raises ConnectionLimitExceeded: :class:`~.PoolExhausted`, :class:`~.PoolTimeout`, :class:`~.PoolFull`.
        :raises OperationalError: :class:`~.BrokerUnreachable`.
        :raises TypeError, ValueError: for a *timeout* that is none.
        """
        if self.pending:
            lent = self.pending.get(threading.get_ident())
            if lent is not None:
                return lent
        if timeout is not None:
            timeout = valid_timeout(timeout)
        view: ConnectionView = self.engine.acquire(block, timeout, None, self._make)
        return view

    def make_view(self, engine: Pool[Any], entry: Entry[Any]) -> ConnectionView:
        """The lease of *entry*; called by the engine, under its lock."""
        view = _new_view(ConnectionView)
        view._engine = engine
        view._entry = entry
        view._pool = self
        view.__dict__ = entry.item.__dict__
        return view

    def publishing_blocked(self, item: OpenConnection, reason: str) -> None:
        """The broker has told *item* that it takes no messages: lend no producers for now. From any thread."""
        self.engine.shut_gate(self.publishing, item, reason)

    def publishing_unblocked(self, item: OpenConnection) -> None:
        """The broker has told *item* that it takes messages again. From any thread."""
        self.engine.open_gate(self.publishing, item)

    def _own(self, resource: Any) -> ConnectionView:
        if not isinstance(resource, ConnectionView) or resource._pool is not self:
            raise LeaseError(
                f"pool {self.name!r}: cannot take {resource!r}, it is no lease of this pool; call its own release()"
            )
        return resource

    def release(self, resource: Any) -> None:
        """Take a connection back; the second time does nothing.

        :raises LeaseError: if it is not a lease of this pool.
        """
        self._own(resource).release()

    def replace(self, resource: Any) -> None:
        """Take a connection back and close it: the next borrower gets another one.

        :raises LeaseError: if it is not a lease of this pool.
        """
        view = self._own(resource)
        if not view.ended:
            view.__dict__ = RELEASED_STATE
            view.end("replaced")

    @contextmanager
    def acquire_channel(
        self, block: bool = False, timeout: float | None = None
    ) -> Iterator[tuple[ConnectionView, Any]]:
        """Lend a connection with its default channel, for the ``with`` block."""
        with self.acquire(block=block, timeout=timeout) as connection:
            yield connection, connection.default_channel

    @property
    def _closed(self) -> bool:
        # kombu's name for it.
        return self.engine.closed

    def new(self) -> OpenConnection:
        """A connection with the pool's settings, not connected and not of the pool."""
        return self._driver.new()

    # kombu's hooks around its queue, which is not there: they are called by nobody.
    def setup(self) -> None:
        """Kombu's; does nothing."""

    def prepare(self, resource: Any) -> Any:
        """Kombu's; returns *resource*."""
        return resource

    def close_resource(self, resource: Any) -> None:
        """Close a connection for good, whosever it is."""
        resource._close()

    def collect_resource(self, resource: Any, socket_timeout: float = 0.1) -> None:
        """Close a connection without a word."""
        resource.collect(socket_timeout)
