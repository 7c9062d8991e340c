"""The pool of connections."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

from kombu.connection import Connection
from kombu.connection import ConnectionPool as KombuConnectionPool
from kombu.exceptions import LimitExceeded
from kombu.utils.functional import lazy

from .. import events
from ..engine import Gate, Pool, PoolOptions, Share
from ..engine.stats import Drained
from ..engine.threads import spawn_thread
from ..engine.trial import Trial
from ..errors import BrokerUnreachable, ConnectTimeout, LeaseError
from ..settings import CONFIRM_TIMEOUT
from . import hooks
from .base_pool import BasePool
from .connection import OpenConnection
from .credentials import Credentials
from .driver import ConnectionDriver
from .event_loops import loops, warn_of_blocking
from .failed_openings import NotConnected
from .kombu_errors import KombuErrors
from .lazy_attribute import LazyAttribute
from .leased_connection import LeasedConnection
from .naming import describe_resource, masked_uri
from .soundness import verdict_on
from .validate import FLAGS, FOREVER, PLAIN, check_flag, valid_limit, valid_timeout

__all__ = ["ConnectionPool"]


class _Listener:
    """Passes the engine's events on, with the pool they are about."""

    def __init__(self, pool: BasePool) -> None:
        self._pool = pool

    def wanted(self) -> None:
        events.demand.send(pool=self._pool)

    def opened(self) -> None:
        events.connection_opened.send(pool=self._pool)

    def closed(self, reason: str) -> None:
        events.connection_closed.send(pool=self._pool, reason=reason)

    def exhausted(self, reason: str) -> None:
        events.pool_exhausted.send(pool=self._pool, reason=reason)


class ConnectionPool(BasePool, KombuConnectionPool):  # type: ignore[misc, unused-ignore]  # no queue
    """A pool of connections like *connection*, which itself stays unconnected and unused.

    :param connection: the broker, and every setting of the connections; or a function that returns it, called once.
    :param limit: most connections at a time; ``None`` or 0 is unlimited.
    :param preload: kombu's; has no effect (``min_idle`` has).
    :param options: a :class:`PoolOptions`, times and bounds, or a function that returns one.
    :param name: stands in errors, logs and tables; by default the URI without its password.
    :param confirm_timeout: seconds that a publish waits for its confirm, where the connection asks for confirms.
    :param credentials: is called for user and password at each connect, in place of the connection's own.
    """

    def __init__(
        self,
        connection: Connection | Callable[[], Connection],
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
        BasePool.__init__(self, preload, close_after_fork)
        if isinstance(connection, LeasedConnection):
            # A lease ends, and its settings with it.
            connection = connection.clone(heartbeat=connection.heartbeat)
        self._origin = connection
        self._limit = valid_limit(limit)
        self._options = options
        self._name = name
        self.confirm_timeout = confirm_timeout
        self._credentials = credentials
        self.setup()

    #: What is lent.
    kind: type[LeasedConnection] = LeasedConnection

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._hooks = hooks.hooks_of(cls, ConnectionPool)
        cls.kind = hooks.HookedView if cls._hooks else LeasedConnection

    @property
    def has_hooks(self) -> bool:
        """Whether its class overrides a hook."""
        return bool(self._hooks)

    #: Whether producers are lent on its connections, which are opened with a channel then.
    lends_producers = False

    # What most pools of a process with many never need.

    def _find_origin(self) -> Connection:
        origin = self._origin
        return origin if isinstance(origin, Connection) else origin()

    def _make_driver(self) -> ConnectionDriver:
        return ConnectionDriver(
            lambda: self.connection,
            lambda: self.name,
            answer_timeout=CONFIRM_TIMEOUT
            if self.confirm_timeout is None
            else self.confirm_timeout,
            credentials=self._credentials,
            on_blocked=self.publishing_blocked,
            on_unblocked=self.publishing_unblocked,
            with_channel=lambda: self.lends_producers,
            loans=lambda: self.engine,
            own_new=self.new if "new" in self._hooks else None,
            before_close=self._tell_collector,
        )

    def _make_engine(self) -> Pool[OpenConnection]:
        # Imported here, in the thread that uses the pool first: a thread of the pool might import it while another one
        # does, and get a partially initialized module. The opening reports a failed import.
        with contextlib.suppress(Exception):
            self.connection.get_transport_cls()
        # In the instance they are found faster. A pool that is not used does without.
        self._hooks, self.kind = type(self)._hooks, type(self).kind
        options = self._options() if callable(self._options) else self._options
        return Pool(
            self._driver,
            name=self.name,
            limit=self._limit,
            options=options if options is not None else PoolOptions(),
            errors=KombuErrors(),
            listener=_Listener(self),
            spawn=hooks.spawn_but_for_openings if "new" in self._hooks else spawn_thread,
        )

    def _note_limit(self, engine: Pool[OpenConnection]) -> None:
        # Closes the race with a resize that came while the engine was made, and did not see it.
        if engine.limit != self._limit:
            engine.resize(self._limit, force=True)

    #: The broker, and every setting of the connections; it stays unconnected.
    connection = LazyAttribute(_find_origin)
    #: By thread, the lease that a producer pool is preparing: there, acquire() returns that one.
    pending: LazyAttribute[dict[int, LeasedConnection | Share]] = LazyAttribute(lambda pool: {})
    #: What every producer on these connections has to pass; shut while the broker takes no messages.
    publishing = LazyAttribute(lambda pool: Gate())
    #: By thread, who is told of what is closed there.
    collectors: LazyAttribute[dict[int, Callable[[OpenConnection], object]]] = LazyAttribute(
        lambda pool: {}
    )
    _driver = LazyAttribute(_make_driver)
    engine: LazyAttribute[Pool[OpenConnection]] = LazyAttribute(_make_engine, _note_limit)

    @property
    def name(self) -> str:
        """What errors, logs and tables call the pool: by default the URI of its broker, without the password."""
        if self._name is None:
            self._name = masked_uri(self.connection)
        return self._name

    def _get_limit(self) -> int | None:
        engine = LazyAttribute.of(self, "engine")
        limit: int | None = self._limit if engine is None else engine.limit
        return limit

    def _resize(self, limit: int | None, *, force: bool) -> None:
        before, self._limit = self._limit, limit
        # In this order: a thread that is making the engine looks at the limit when the engine can be seen here.
        engine = LazyAttribute.of(self, "engine")
        if engine is not None:
            try:
                engine.resize(limit, force=force)
            except BaseException:
                self._limit = before
                raise

    def acquire(self, block: bool = False, timeout: float | None = None) -> LeasedConnection:
        """Lend an open connection; to be given back with ``release()``, or by leaving its ``with`` block.

        :param block: wait without end for a connection, unless there is a *timeout*.
        :param timeout: seconds for everything together: waiting, connecting, checking. Implies waiting.
        :raises ConnectionLimitExceeded: :class:`~.PoolExhausted`, :class:`~.PoolTimeout`, :class:`~.PoolFull`.
        :raises OperationalError: :class:`~.BrokerUnreachable`, which is of the class of the transport's own error too.
        :raises TypeError, ValueError: if *timeout* is not a valid number of seconds, or if *block* is one, as in
            ``acquire(5)``.
        """
        if loops.running() is not None:
            warn_of_blocking("acquire()")
        share = None
        if self.pending:
            me = threading.get_ident()
            lent = self.pending.get(me)
            if isinstance(lent, Share):
                # A producer pool asks, by the acquire() of a subclass.
                share = lent
                del self.pending[me]
            elif lent is not None:
                return lent
        if block not in FLAGS:
            check_flag("block", block)
        if timeout is not None and not (timeout.__class__ in PLAIN and 0 <= timeout < FOREVER):
            timeout = valid_timeout(timeout)
        try:
            view: LeasedConnection = self.engine.acquire(block, timeout, share, self.kind)
        except BrokerUnreachable as error:
            raise self._as_the_transports(error) from error.__cause__
        except LimitExceeded as error:
            if isinstance(error, self.LimitExceeded):
                raise
            raise hooks.as_limit_exceeded(self.LimitExceeded, error) from error.__cause__
        view._pool = self
        return self._prepared(view) if self._hooks else view

    def _prepared(self, view: Any) -> Any:
        """Have a subclass prepare *view*, and return what it returns."""
        item = view.entry.item
        try:
            return self.prepare(hooks.as_class_of(view, item))
        except BaseException as error:
            view.end(verdict_on(item.pooled_session, error))
            raise

    def _as_the_transports(self, error: BrokerUnreachable) -> BrokerUnreachable:
        """Return *error* as one of the class of the transport's own error as well.

        kombu lends the connection unopened, and its ``connect()`` raises the transport's own.
        """
        cause = error.__cause__
        if isinstance(cause, NotConnected):
            cause = cause.__cause__
        if cause is None and isinstance(error, ConnectTimeout):
            # No attempt has ended yet.
            cause = TimeoutError()
        connection = self.connection
        families = (*connection.connection_errors, *connection.channel_errors)
        # Any other error, such as one of the application's CREDENTIALS, stays as it is.
        if cause is not None and isinstance(cause, families):
            return error.like(cause).with_traceback(error.__traceback__)
        return error

    # -- new connections before the old ones go ------------------------------------------------------------

    @property
    def was_used(self) -> bool:
        """Whether the pool has opened a connection in this process."""
        engine = LazyAttribute.of(self, "engine")
        return engine is not None and bool(engine.state.counters.opened)

    @property
    def suspended(self) -> Literal["fail", "wait"] | None:
        """The mode of :meth:`suspend`, until :meth:`resume`; else ``None``."""
        engine = LazyAttribute.of(self, "engine")
        return None if engine is None else engine.state.suspended

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
        engine = LazyAttribute.of(self, "engine")
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
        engine = LazyAttribute.of(self, "engine")
        return Drained(0, 0) if engine is None else engine.replace()

    def publishing_blocked(self, item: OpenConnection, reason: str) -> None:
        """The broker has told *item* that it takes no messages: lend no producers for now. From any thread."""
        self.engine.shut_gate(self.publishing, item, reason)

    def publishing_unblocked(self, item: OpenConnection) -> None:
        """The broker has told *item* that it takes messages again. From any thread."""
        self.engine.open_gate(self.publishing, item)

    def _own(self, resource: Any) -> LeasedConnection:
        if not isinstance(resource, LeasedConnection) or resource._pool is not self:
            raise LeaseError(
                f"pool {self.name!r}: cannot take {describe_resource(resource)}, it is no lease of this pool; call its "
                "own release()"
            )
        mine: LeasedConnection = resource
        return mine

    def release(self, resource: Any) -> None:
        """Take a connection back; the second time does nothing.

        :raises LeaseError: if it is not a lease of this pool.
        """
        view = self._own(resource)
        # Not what its borrower may have put in the place of its release, which may call this.
        if isinstance(view, hooks.HookedView):
            view.give_back()
        else:
            LeasedConnection.release(view)

    def replace(self, resource: Any) -> None:
        """Take a connection back and close it: the next borrower gets another one.

        :raises LeaseError: if it is not a lease of this pool.
        """
        view = self._own(resource)
        if isinstance(view, hooks.HookedView):
            view.give_back("replaced")
        elif not view.ended:
            view.end("replaced")

    @contextlib.contextmanager
    def acquire_channel(
        self, block: bool = False, timeout: float | None = None
    ) -> Iterator[tuple[LeasedConnection, Any]]:
        """Lend a connection with its default channel, for the ``with`` block."""
        with self.acquire(block=block, timeout=timeout) as connection:
            yield connection, connection.default_channel

    @property
    def _closed(self) -> bool:
        # kombu's name for it.
        engine = LazyAttribute.of(self, "engine")
        return engine is not None and engine.closed

    @_closed.setter
    def _closed(self, closed: bool) -> None:
        if closed:
            self.force_close_all()
        elif self._closed:
            raise AttributeError(
                f"pool {self.name!r} stays closed: whoever waited was told so; to close its connections and go on "
                "using it, call force_close_all(close_pool=False); else make another pool"
            )

    def new(self) -> OpenConnection:
        """A connection with the pool's settings, not connected and not of the pool."""
        return self._driver.new()

    # kombu's hooks.
    def prepare(self, resource: Any) -> Any:
        """Kombu's; returns *resource*. Called at every acquire with the lease, in its borrower's thread."""
        return resource

    def release_resource(self, resource: Any) -> None:
        """Kombu's; does nothing. Called with a lease that ends and whose connection may be lent again."""

    def close_resource(self, resource: Any) -> None:
        """Close a connection for good, of this pool or not. Called with a lease whose connection is not lent again.

        A lease of this pool is closed by the pool, right after that.
        """
        if not (isinstance(resource, hooks.HookedView) and resource._pool is self):
            resource._close()

    def collect_resource(self, resource: Any, socket_timeout: float = 0.1) -> None:
        """Close a connection without a word. Called with each that ``force_close_all()`` and ``resize()`` close.

        A connection of the pool is closed by the pool, right after that; one that is yet to be made is left alone.
        """
        if not isinstance(resource, lazy) and threading.get_ident() not in self.collectors:
            resource.collect(socket_timeout)

    @contextlib.contextmanager
    def collecting(self, told: Callable[[OpenConnection], object]) -> Iterator[None]:
        """Within, *told* is called with each connection before this thread closes it."""
        me = threading.get_ident()
        before = self.collectors.get(me)
        self.collectors[me] = told
        try:
            yield
        finally:
            del self.collectors[me]
            if before is not None:
                self.collectors[me] = before

    def _collecting(self) -> contextlib.AbstractContextManager[None]:
        if "collect_resource" in self._hooks:
            return self.collecting(self.collect_resource)
        return super()._collecting()

    def _tell_collector(self, item: OpenConnection) -> None:
        collectors = LazyAttribute.of(self, "collectors")
        told = collectors.get(threading.get_ident()) if collectors else None
        if told is not None:
            try:
                told(item)
            except Exception:
                # kombu goes on, too: the others are to be closed.
                events.logger.exception("pool %r: collect_resource() failed", self.name)

    def force_close_all(self, close_pool: bool = True) -> Drained:
        """Close what is idle now, and what is lent when it comes back.

        :param close_pool: refuse every later acquire, and fail those that wait.
        :returns: how many were closed, and how many are still lent.
        :raises TypeError: for a *close_pool* that is meant as a time-out; :meth:`drain` has one.
        """
        with self._collecting():
            return super().force_close_all(close_pool)
