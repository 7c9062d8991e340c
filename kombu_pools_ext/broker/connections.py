"""The pool of connections."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import kombu
from kombu.connection import ConnectionPool as KombuConnectionPool

from .. import events
from ..engine import Gate, Pool, PoolOptions
from ..engine.counters import Drained, PoolStats
from ..engine.trial import Trial
from ..errors import LeaseError
from .credentials import Credentials
from .driver import ConnectionDriver, KombuErrors, OpenConnection
from .made_once import MadeOnce
from .naming import describe_resource, masked_uri
from .redis_sockets import ANSWER_TIMEOUT
from .validate import FLAGS, FOREVER, PLAIN, check_flag, valid_limit, valid_seconds, valid_timeout
from .views import RELEASED_STATE, ConnectionView

__all__ = ["ConnectionPool", "PoolFace"]


class PoolFace:
    """What a connection pool and a producer pool have in common: kombu's interface over an engine."""

    #: Made at the first use.
    engine: Any
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
        return str(self.engine.name)

    @property
    def is_over(self) -> bool:
        """Whether it was closed, or what it draws on."""
        engine = MadeOnce.of(self, "engine")
        return self._closed or (engine is not None and engine.closed)

    @property
    def limit(self) -> int | None:
        """Most leases at a time; ``None`` is unlimited. Setting it resizes, and ends following the global limit."""
        return self._get_limit()

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self.resize(limit)

    def _get_limit(self) -> int | None:
        raise NotImplementedError

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
        raise NotImplementedError

    @property
    def lent(self) -> int:
        """Leases out at the moment."""
        engine = MadeOnce.of(self, "engine")
        return 0 if engine is None else engine.lent

    def force_close_all(self, close_pool: bool = True) -> Drained:
        """Close what is idle now, and what is lent when it comes back.

        :param close_pool: refuse every later acquire, and fail at once whoever waits.
        :returns: how many were closed, and how many are still lent.
        :raises TypeError: for a *close_pool* that is meant as a time-out; :meth:`drain` has one.
        """
        check_flag("close_pool", close_pool, "drain(timeout={})")
        if close_pool:
            closed: Drained = self.engine.close()
            return closed
        engine = MadeOnce.of(self, "engine")
        return Drained(0, 0) if engine is None else engine.drain()

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
        drained: Drained = self.engine.drain(None if timeout is None else valid_seconds(timeout))
        return drained

    def begin_drain(self) -> Callable[[float | None], Drained]:
        """The first half of :meth:`drain`.

        :returns: the second half, which takes a deadline of ``time.monotonic``, or ``None`` not to wait.
        """
        finish: Callable[[float | None], Drained] = self.engine.begin_drain()
        return finish

    def stats(self) -> PoolStats:
        """A snapshot of the pool, and its totals."""
        stats: PoolStats = self.engine.stats()
        return stats

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {self.engine.describe()}>"


class _Listener:
    """Passes the engine's events on, with the pool they are about."""

    def __init__(self, pool: PoolFace) -> None:
        self._pool = pool

    def wanted(self) -> None:
        events.demand.send(pool=self._pool)

    def opened(self) -> None:
        events.connection_opened.send(pool=self._pool)

    def closed(self, reason: str) -> None:
        events.connection_closed.send(pool=self._pool, reason=reason)

    def exhausted(self, reason: str) -> None:
        events.pool_exhausted.send(pool=self._pool, reason=reason)


class ConnectionPool(PoolFace, KombuConnectionPool):
    """A pool of connections like *connection*, which itself stays unconnected and unused.

    :param connection: the broker, and every setting of the connections; or a function that returns it, called once.
    :param limit: most connections at a time; ``None`` or 0 is unlimited.
    :param preload: kombu's; has no effect (``min_idle`` has).
    :param options: times and bounds, or a function that returns them; by default those of
        ``docs/reference/settings.md``.
    :param name: stands in errors, logs and tables; by default the URI without its password.
    :param confirm_timeout: seconds that a publish waits for its confirm, where the connection asks for confirms.
    :param credentials: is called for user and password at each connect, in place of the connection's own.
    """

    def __init__(
        self,
        connection: kombu.Connection | Callable[[], kombu.Connection],
        limit: int | None = None,
        preload: Any = None,
        close_after_fork: Any = None,
        *,
        options: PoolOptions | Callable[[], PoolOptions] | None = None,
        name: str | None = None,
        confirm_timeout: float | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        # Not kombu's __init__: it registers a fork hook that shuts the parent's sockets down.
        PoolFace.__init__(self, preload, close_after_fork)
        if isinstance(connection, ConnectionView):
            # A lease ends, and its settings with it.
            connection = connection.clone(heartbeat=connection.heartbeat)
        self._origin = connection
        self._limit = valid_limit(limit)
        self._options = options
        self._name = name
        self.confirm_timeout = confirm_timeout
        self._credentials = credentials

    #: Whether producers are lent on its connections, which are opened with a channel then.
    lends_producers = False

    # What most pools of a process with many never need.

    def _find_origin(self) -> kombu.Connection:
        origin = self._origin
        return origin if isinstance(origin, kombu.Connection) else origin()

    def _make_driver(self) -> ConnectionDriver:
        return ConnectionDriver(
            lambda: self.connection,
            lambda: self.name,
            answer_timeout=ANSWER_TIMEOUT if self.confirm_timeout is None else self.confirm_timeout,
            credentials=self._credentials,
            on_blocked=self.publishing_blocked,
            on_unblocked=self.publishing_unblocked,
            with_channel=lambda: self.lends_producers,
        )

    def _make_engine(self) -> Pool[OpenConnection]:
        # Imported here, in the thread that uses the pool first: a thread of the pool might import it while another one
        # does, and get a partially initialized module. The opening reports a failed import.
        with contextlib.suppress(Exception):
            self.connection.get_transport_cls()
        options = self._options() if callable(self._options) else self._options
        return Pool(
            self._driver,
            name=self.name,
            limit=self._limit,
            options=options if options is not None else PoolOptions(),
            errors=KombuErrors(),
            listener=_Listener(self),
        )

    def _note_limit(self, engine: Pool[OpenConnection]) -> None:
        # Closes the race with a resize that came while the engine was made, and did not see it.
        if engine.limit != self._limit:
            engine.resize(self._limit, force=True)

    #: The broker, and every setting of the connections; it stays unconnected.
    connection: kombu.Connection = MadeOnce(_find_origin)
    #: By thread, the lease that a producer pool is preparing: there, acquire() returns that one.
    pending: dict[int, ConnectionView] = MadeOnce(lambda pool: {})  # type: ignore[assignment]  # a descriptor
    #: What every producer on these connections has to pass; shut while the broker takes no messages.
    publishing: Gate = MadeOnce(lambda pool: Gate())  # type: ignore[assignment]  # a descriptor
    _driver: ConnectionDriver = MadeOnce(_make_driver)  # type: ignore[assignment]  # a descriptor
    engine: Pool[OpenConnection] = MadeOnce(_make_engine, _note_limit)  # type: ignore[assignment]  # a descriptor

    @property
    def name(self) -> str:
        """What errors, logs and tables call the pool: alias and URI, without a password."""
        if self._name is None:
            self._name = masked_uri(self.connection)
        return self._name

    def _get_limit(self) -> int | None:
        engine = MadeOnce.of(self, "engine")
        return self._limit if engine is None else engine.limit

    def _resize(self, limit: int | None, *, force: bool) -> None:
        before, self._limit = self._limit, limit
        # In this order: a thread that is making the engine looks at the limit when the engine can be seen here.
        engine = MadeOnce.of(self, "engine")
        if engine is not None:
            try:
                engine.resize(limit, force=force)
            except BaseException:
                self._limit = before
                raise

    def acquire(self, block: bool = False, timeout: float | None = None) -> ConnectionView:
        """Lend an open connection; to be given back with ``release()``, or by leaving its ``with`` block.

        :param block: wait without end for a connection, unless there is a *timeout*.
        :param timeout: seconds for everything together: waiting, connecting, checking. Implies waiting.
        :raises ConnectionLimitExceeded: :class:`~.PoolExhausted`, :class:`~.PoolTimeout`, :class:`~.PoolFull`.
        :raises OperationalError: :class:`~.BrokerUnreachable`.
        :raises TypeError, ValueError: for a *timeout* that is none, and a *block* that is meant as one: ``acquire(5)``.
        """
        if self.pending:
            lent = self.pending.get(threading.get_ident())
            if lent is not None:
                return lent
        if block not in FLAGS:
            check_flag("block", block)
        if timeout is not None and not (timeout.__class__ in PLAIN and 0 <= timeout < FOREVER):
            timeout = valid_timeout(timeout)
        view: ConnectionView = self.engine.acquire(block, timeout, None, ConnectionView)
        view._pool = self
        view.__dict__ = view._entry.item.__dict__  # type: ignore[union-attr]  # it has just been lent
        return view

    # -- new connections before the old ones go ------------------------------------------------------------

    @property
    def was_used(self) -> bool:
        """Whether the pool has opened a connection in this process."""
        engine = MadeOnce.of(self, "engine")
        return engine is not None and bool(engine.ledger.counters.opened)

    @property
    def suspended(self) -> Literal["fail", "wait"] | None:
        """The mode of :meth:`suspend`, until :meth:`resume`; else ``None``."""
        engine = MadeOnce.of(self, "engine")
        return None if engine is None else engine.ledger.suspended

    def suspend_as(self, former: ConnectionPool) -> None:
        """Suspend this pool as *former*, which it replaces, is suspended; :meth:`resume` then ends both."""
        if former.suspended is not None:
            self.engine.suspend_as(former.engine)

    def try_opening(self, timeout: float) -> Trial[OpenConnection]:
        """Begin to open a connection that the pool does not count yet, in a thread of its own.

        :param timeout: seconds for the opening.
        """
        return Trial(self.engine, timeout)

    @property
    def can_renew(self) -> bool:
        """Whether the pool has open connections, and may open new ones because it is not suspended."""
        engine = MadeOnce.of(self, "engine")
        return engine is not None and engine.can_renew

    def renew(self, item: OpenConnection) -> Drained:
        """Take in *item*, which :meth:`try_opening` has opened, and close all others, lent ones when they come back.

        :returns: how many were closed, and how many are still lent.
        """
        return self.engine.renew(item)

    def take_in(self, item: OpenConnection) -> None:
        """Add *item*, which :meth:`try_opening` has opened, to the pool."""
        self.engine.take_in(item)

    def close_untaken(self, item: OpenConnection) -> None:
        """Close *item*, which :meth:`try_opening` has opened, without adding it to the pool."""
        with contextlib.suppress(Exception):
            self._driver.close(item, broken=False)

    def replace_by_another(self) -> Drained:
        """Make way for another pool: close idle connections, and lent ones that come back while nobody waits.

        :returns: how many were closed, and how many are still lent.
        """
        engine = MadeOnce.of(self, "engine")
        return Drained(0, 0) if engine is None else engine.replace()

    def publishing_blocked(self, item: OpenConnection, reason: str) -> None:
        """The broker has told *item* that it takes no messages: lend no producers for now. From any thread."""
        self.engine.shut_gate(self.publishing, item, reason)

    def publishing_unblocked(self, item: OpenConnection) -> None:
        """The broker has told *item* that it takes messages again. From any thread."""
        self.engine.open_gate(self.publishing, item)

    def _own(self, resource: Any) -> ConnectionView:
        if not isinstance(resource, ConnectionView) or resource._pool is not self:
            raise LeaseError(
                f"pool {self.name!r}: cannot take {describe_resource(resource)}, it is no lease of this pool; call its "
                "own release()"
            )
        mine: ConnectionView = resource
        return mine

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

    @contextlib.contextmanager
    def acquire_channel(
        self, block: bool = False, timeout: float | None = None
    ) -> Iterator[tuple[ConnectionView, Any]]:
        """Lend a connection with its default channel, for the ``with`` block."""
        with self.acquire(block=block, timeout=timeout) as connection:
            yield connection, connection.default_channel

    @property
    def _closed(self) -> bool:
        # kombu's name for it.
        engine = MadeOnce.of(self, "engine")
        return engine is not None and engine.closed

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
