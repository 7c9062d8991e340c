"""How the engine opens, checks and closes connections of kombu."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import kombu
from amqp import spec
from kombu.exceptions import OperationalError

from ..engine.errors import ErrorFamily
from ..errors import (
    BrokerBlocked,
    BrokerUnreachable,
    ConnectTimeout,
    LeaseError,
    PoolClosed,
    PoolExhausted,
    PoolFull,
    PoolReentered,
    PoolSuspended,
    PoolTimeout,
)
from ..masking import MASK
from . import (
    connecting,
    leftovers,
    lent_settings,
    liveness,
    redis_sockets,
    virtual_leftovers,
)
from .confirms import CONFIRM_TIMEOUT, Confirms, default_channel
from .naming import uri_of, with_host
from .own_errors import raised_by_carrier
from .views import INHERITED, ended_state
from .wire import Wire

if TYPE_CHECKING:
    from kombu.connection import ConnectionPool as KombuConnectionPool

    from .credentials import Credentials, Login
    from .direct import Direct

logger = logging.getLogger("kombu_pools_ext")

__all__ = ["ConnectionDriver", "ForeignDriver", "KombuErrors", "OpenConnection"]

#: Seconds that a peer gets to answer a goodbye. It answers within a millisecond or never.
CLOSE_TIMEOUT = 1.0
#: Seconds for writing it alone: its 30 bytes go into the socket's buffer, unless that is full.
ANNOUNCE_TIMEOUT = 0.01

_UNBOUND = contextlib.nullcontext()


class OpenConnection(kombu.Connection):
    """A connection as the pool keeps it; borrowers see it through a lease's own view."""

    #: The transport's connection as it was opened: another one means that it was repaired in place.
    established: Any = None
    #: What is below it, where py-amqp carries it.
    wire: Wire | None = None
    #: The same for Redis.
    bounds: redis_sockets.Bounds | None = None
    #: What errors and logs call its pool.
    pool_name = ""
    #: Seconds that Redis gets for an answer.
    answer_timeout: float = redis_sockets.ANSWER_TIMEOUT
    #: Called for user and password each time it connects.
    credentials: Credentials | None = None
    #: Seconds for connecting, where it must not take as long as it may.
    at_most: float | None = None
    #: With AMQP, whether the channel that is opened together with it becomes its default channel.
    with_channel: bool = False
    #: That channel, until it is used.
    first_channel: Any = None
    #: Whether the goodbye has been sent already.
    announced: bool = False
    #: The producers bound to it, by their pool.
    pooled_producers: dict[Any, Any]
    #: Who counts what is published on the default channel, where that is in confirm mode.
    confirms: Confirms | None = None
    #: The short way to publish on that channel, once a producer has looked for it.
    direct: Direct | None = None
    #: Seconds for a publish on that channel by somebody without a bound of his own.
    confirm_timeout: float = CONFIRM_TIMEOUT
    #: Whether something was done that may outlive a lease; to be looked at when that ends.
    untidy: bool = False
    #: What its attributes were before its borrower set them.
    altered: dict[str, Any]
    #: The attributes that are not a borrower's, and how many there were at the end of the last untidy lease.
    own_names: frozenset[str] = frozenset()
    size: int = 0
    #: Who ends what was left on it, at this moment.
    tidied_by: object

    @property
    def default_channel(self) -> Any:
        """Kombu's; with AMQP it never connects anew, and its publishes are counted."""
        if self.wire is not None:
            return default_channel(self)
        if self._default_channel is None:
            # The producers that stay are to have it, too.
            self.untidy = True
        return super().default_channel

    def within(self, deadline: float | None) -> contextlib.AbstractContextManager[None]:
        """Within, every read and write has ended by *deadline*, with a :class:`TimeoutError`; AMQP and Redis only.

        :param deadline: in seconds of ``time.monotonic``; ``None`` sets none. Of nested ones the earlier holds.
        """
        bounded = self.wire or self.bounds
        return _UNBOUND if bounded is None else bounded.within(deadline)

    def _init_params(self, **params: Any) -> None:
        # The origin knows whether "amqp" means librabbitmq. To find out, kombu would import gevent and eventlet in
        # a thread of the pool, while another thread may be importing them.
        asked = params.get("transport") or "amqp"
        super()._init_params(**{**params, "transport": "pyamqp" if asked == "amqp" else asked})
        if asked == "amqp":
            self.transport_cls = asked

    def create_transport(self) -> Any:
        """A transport, which keeps to this connection's bounds."""
        transport = super().create_transport()
        self.bounds = redis_sockets.bound(transport)
        virtual_leftovers.note_channels(transport)
        return transport

    def _establish_connection(self) -> Any:
        return connecting.establish(self)

    def log_in(self, login: Login) -> None:
        """Connect as *login* from now on; copies of the connection do so too."""
        self.password = login.password
        if login.user is not None:
            self.userid = login.user

    def as_uri(self, include_password: bool = False, mask: str = MASK, *args: Any) -> str:
        """Kombu's; without a password it shows no piece of one either, wherever kombu has put it."""
        return super().as_uri(True, mask, *args) if include_password else uri_of(self, mask)

    def __repr__(self) -> str:
        return f"<Connection: {uri_of(self)} at {id(self):#x}>"

    def clone(self, **kwargs: Any) -> kombu.Connection:
        """A plain connection with the same settings but for its heartbeat: nobody says one for it."""
        settings = {**dict(self._info(resolve=False)), "heartbeat": 0}
        settings["transport_options"] = dict(settings["transport_options"] or {})
        return kombu.Connection(**{**settings, **kwargs})

    def __copy__(self) -> kombu.Connection:
        return self.clone()

    def __reduce__(self) -> Any:
        return kombu.Connection, tuple({**self.info(), "heartbeat": 0}.values()), None


class ConnectionDriver:
    """Opens connections like *origin*, which stays unconnected.

    :param make_origin: returns a new, unconnected connection with the pool's settings.
    :param name: returns the pool's name, for the log.
    :param answer_timeout: seconds that Redis gets for each answer, unless the connection's own options say it.
    :param on_blocked: is told of each connection on which the broker takes no messages for a while, and why.
    :param on_unblocked: is told when it takes them again.
    :param credentials: called for user and password at each connect, if given.
    :param with_channel: returns whether borrowers are likely to use the default channel of a connection.
    """

    def __init__(
        self,
        make_origin: Callable[[], kombu.Connection],
        name: Callable[[], str] = str,
        *,
        answer_timeout: float = redis_sockets.ANSWER_TIMEOUT,
        credentials: Credentials | None = None,
        on_blocked: Callable[[OpenConnection, str], object] | None = None,
        on_unblocked: Callable[[OpenConnection], object] | None = None,
        with_channel: Callable[[], bool] = bool,
    ) -> None:
        self._make_origin = make_origin
        self._name = name
        self._answer_timeout = answer_timeout
        self._credentials = credentials
        self._connector = connecting.Connector(self._new_to_open)
        self._with_channel = with_channel
        self._on_blocked = on_blocked
        self._on_unblocked = on_unblocked

    def new(self) -> OpenConnection:
        """A connection with the pool's settings, not connected."""
        settings = dict(with_host(self._make_origin())._info(resolve=False))
        for name in ("transport_options", "ssl"):
            # kombu writes into both: retry policies into the one, a server name into the other.
            if isinstance(settings[name], dict):
                settings[name] = dict(settings[name])
        settings["alternates"] = list(settings["alternates"] or ())
        connection = OpenConnection(**settings)
        connection.pooled_producers = {}
        connection.altered = {}
        connection.transport_options = lent_settings.Options(
            connection.transport_options, connection
        )
        connection.answer_timeout = self._answer_timeout
        connection.credentials = self._credentials
        return connection

    def _new_to_open(self) -> OpenConnection:
        connection = self.new()
        connection.with_channel = self._with_channel()
        return connection

    def open(self) -> OpenConnection:
        """Connect, as :meth:`connecting.Connector.open` does."""
        return self._open(None)

    def open_within(self, seconds: float) -> OpenConnection:
        """:meth:`open` for a caller who has no more than *seconds*, in its own thread."""
        return self._open(seconds)

    def _open(self, seconds: float | None) -> OpenConnection:
        connection = self._connector.open(seconds)
        connection.established = connection._connection
        # A repair in place is kombu's alone.
        connection.with_channel = False
        self.settle_in(connection)
        connection.own_names = lent_settings.names_of(connection)
        return connection

    def settle_in(self, item: OpenConnection) -> None:
        """Put what the pool needs to know and to do below a connection that has just been established."""
        if not liveness.is_amqp(item):
            return
        established = item.established
        item.pool_name = self._name()
        item.wire = Wire(established)
        # In the place of those that its options may name: nobody else's code runs in a thread of the pool.
        established.on_blocked = established.on_unblocked = None
        if self._on_blocked is not None:
            established.when_blocked = partial(self._on_blocked, item)
        if self._on_unblocked is not None:
            established.when_unblocked = partial(self._on_unblocked, item)

    def check(self, item: OpenConnection, *, thorough: bool) -> bool:
        """Whether *item* may be lent; if *thorough*, only if the broker answers on it."""
        try:
            return liveness.check(item, self._name(), thorough=thorough)
        except Exception as error:
            if not raised_by_carrier(error):
                raise
            logger.debug("pool %r: a check failed: %r", self._name(), error)
            return False

    def is_gone(self, item: OpenConnection) -> bool:
        """Whether the peer of *item* has hung up; AMQP only."""
        return item.wire is not None and item.wire.look() == "gone"

    def keep_alive_every(self, item: OpenConnection) -> float | None:
        """Seconds between two calls of :meth:`keep_alive`: a third of the heartbeat that was agreed on, if any."""
        interval = getattr(item.established, "heartbeat", 0) if item.wire is not None else 0
        return interval / liveness.LOOKS if interval else None

    def keep_alive(self, item: OpenConnection, *, lent: bool) -> bool:
        """Say a heartbeat, and whether *item* is alive. Never dials, never waits for the peer.

        :param lent: a borrower may be using it at this moment, so nothing is read, and it is he who will notice.
        """
        if not lent:
            return liveness.keep_alive(item, self._name())
        if self.keep_alive_every(item) is not None and item.wire is not None:
            item.wire.beat()
        return True

    def may_pass(self, error: BaseException) -> bool:
        """Whether an opening that failed with *error* may succeed later, without anybody's doing."""
        # A rotated password reaches the broker and this process at different moments.
        asks = self._credentials is not None
        return connecting.may_pass(error) or (asks and connecting.is_login_refused(error))

    def close(self, item: OpenConnection, *, broken: bool, timeout: float | None = None) -> None:
        """Say goodbye, within *timeout* seconds; not a word if it is *broken*."""
        seconds = CLOSE_TIMEOUT if timeout is None else timeout
        established = item._connection
        sock = getattr(getattr(established, "_transport", None), "sock", None)
        if sock is not None:
            # Bounds TLS's own goodbye, within close(); and that of transports without a wire.
            with contextlib.suppress(OSError):
                sock.settimeout(ANNOUNCE_TIMEOUT if broken else seconds)
        if item.wire is not None:
            # The connection's goodbye covers its channels: no round trip for each.
            item._default_channel = None
            broken = broken or item.wire.torn
        seconds += leftovers.before_close(item)
        with item.within(time.monotonic() + seconds):
            leftovers.close(item)
            if item.announced:
                if not broken:
                    # The answer alone: a second goodbye might find the broker gone, which would log that we were.
                    with contextlib.suppress(Exception):
                        item._connection.wait(spec.Connection.CloseOk)
                broken = True
            if broken:
                item.collect()
            else:
                item._close()
                if item.wire is not None and established is not None:
                    # What came in the answer's place, such as the end of a consumer, has kept it open.
                    established.collect()
        item.pooled_producers = {}

    def announce_close(self, item: OpenConnection) -> None:
        """Send the goodbye, whose answer :meth:`close` reads: the broker then knows it even if nobody waits."""
        if item.wire is not None:
            item.announced = True
            established = item._connection
            established._transport.sock.settimeout(ANNOUNCE_TIMEOUT)
            established.send_method(spec.Connection.Close, "BsBB", (0, "the process ends", 0, 0))

    def abandon(self, item: OpenConnection) -> None:
        """In a forked child: close the descriptors, and make every use of *item* an error."""
        liveness.abandon(item)
        # The lease's view shares this state: from now on, whatever it is asked for, it says so.
        for producer in item.pooled_producers.values():
            producer.__dict__.clear()
            producer.__dict__.update(ended_state(INHERITED))
        item.__dict__.clear()
        item.__dict__.update(ended_state(INHERITED))


class ForeignDriver:
    """Draws on a pool that is not ours: kombu's own, or anything with its interface."""

    def __init__(self, connections: KombuConnectionPool) -> None:
        self._connections = connections
        # What a borrower who does not wait has taken already, for the opening that it causes.
        self._offered: deque[Any] = deque()

    @contextlib.contextmanager
    def not_waiting(self) -> Iterator[None]:
        """Within, there is a connection of the other pool to open.

        :raises LimitExceeded: if the other pool has none.
        """
        connection = self._connections.acquire()
        self._offered.append(connection)
        try:
            yield
        finally:
            try:
                self._offered.remove(connection)
            except ValueError:
                pass  # taken
            else:
                connection.release()

    def open(self) -> Any:
        """Lend a connection of the other pool; the borrower's deadline is held by the engine."""
        try:
            return self._offered.popleft()
        except IndexError:
            return self._connections.acquire(block=True)

    def open_within(self, seconds: float) -> Any:
        """:meth:`open` for a caller who has no more than *seconds*, in its own thread."""
        try:
            return self._offered.popleft()
        except IndexError:
            return self._connections.acquire(block=True, timeout=seconds)

    def check(self, item: Any, *, thorough: bool) -> bool:
        """Nothing stays idle here: the other pool keeps it."""
        return True

    def is_gone(self, item: Any) -> bool:
        """As :meth:`check`."""
        return False

    def keep_alive_every(self, item: Any) -> float | None:
        """Never: the other pool keeps its own."""
        return None

    def keep_alive(self, item: Any, *, lent: bool) -> bool:
        """Nothing, for the same reason."""
        return True

    def may_pass(self, error: BaseException) -> bool:
        """Whether an opening that failed with *error* may succeed later, without anybody's doing."""
        return connecting.may_pass(error)

    def close(self, item: Any, *, broken: bool, timeout: float | None = None) -> None:
        """Give *item* back to its own pool."""
        if broken:
            item.collect()
        item.release()

    def announce_close(self, item: Any) -> None:
        """Nothing: the other pool closes its own."""

    def abandon(self, item: Any) -> None:
        """In a forked child: the other pool takes care of its own."""


def _comes_too_late(cause: BaseException) -> bool:
    """Whether *cause* is Python's word for something that cannot be had in an interpreter that ends.

    Such as an import: what Redis' client needs registers exit handlers, which is refused once they run.
    """
    return isinstance(cause, RuntimeError | ImportError) and "shut" in str(cause)


class KombuErrors(ErrorFamily):
    """The library's errors; what kombu itself would let through stays as it is, with the pool's name as a note."""

    exhausted = PoolExhausted
    timeout = PoolTimeout
    connect_timeout = ConnectTimeout
    full = PoolFull
    blocked = BrokerBlocked
    suspended = PoolSuspended
    closed = PoolClosed
    reentered = PoolReentered
    open_failed = BrokerUnreachable
    lease = LeaseError

    def failed_opening(self, message: str, cause: BaseException) -> Exception:
        """Unreachable, or not a matter of reaching: wrong credentials, a missing virtual host, a bug."""
        if isinstance(cause, OperationalError | TimeoutError):
            return super().failed_opening(message, cause.__cause__ or cause)
        if not isinstance(cause, Exception) or _comes_too_late(cause):
            return super().failed_opening(message, cause)
        # One of the same class, for each caller his own: raised in many threads, one would gather their tracebacks.
        kind = type(cause)
        error = kind.__new__(kind, *cause.args)
        error.__dict__.update(cause.__dict__)
        error.__notes__ = [*getattr(cause, "__notes__", ()), message]
        error.__cause__ = cause.__cause__
        return error
