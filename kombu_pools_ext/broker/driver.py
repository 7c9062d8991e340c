"""How the engine opens, checks and closes connections of kombu."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import kombu
from kombu.connection import PooledConnection
from kombu.utils.functional import lazy

from ..engine import Lease
from ..engine.weakrefs import Holding
from ..settings import CONFIRM_TIMEOUT
from .connecting import Connector
from .connection import OpenConnection
from .credentials import Credentials
from .failed_openings import is_login_refused, may_pass
from .leased_connection import INHERITED, ended_state
from .lent_settings import STATE, Options
from .naming import with_host
from .own_errors import raised_by_library

logger = logging.getLogger("kombu_pools_ext")

__all__ = ["ConnectionDriver"]

#: Seconds that a peer gets to answer a goodbye. It answers within a millisecond or never.
CLOSE_TIMEOUT = 1.0
#: Seconds for writing it alone: its 30 bytes go into the socket's buffer, unless that is full.
ANNOUNCE_TIMEOUT = 0.01


class Loans(Protocol):
    """What a pool knows of the connections that it has lent."""

    def loan_of(self, item: Any) -> object | None:
        """What stands for the present loan of *item*; ``None`` if it is lent to nobody."""

    def keeps(self, item: Any) -> bool:
        """Whether it has *item*, and has not given it up."""
        ...

    def reopened(self, item: Any, *, broke: bool) -> None:
        """The borrower of *item* has opened it anew; *broke* says whether it had to."""


#: By connection class, what the pool keeps of it.
_open_types: dict[type[Any], type[OpenConnection]] = {}


def _as_class_of(origin: kombu.Connection, connection: OpenConnection) -> OpenConnection:
    """*connection*, or one of a class that is also that of *origin*, with the attributes that this has besides."""
    kind = type(origin)
    if kind is kombu.Connection or issubclass(kind, OpenConnection | PooledConnection):
        return connection
    if kind not in _open_types:
        _open_types[kind] = type(kind.__name__, (OpenConnection, kind), {})
    typed: OpenConnection = object.__new__(_open_types[kind])
    state = {name: one for name, one in vars(origin).items() if name not in STATE}
    typed.__dict__ = {**state, **vars(connection)}
    typed._transport = None
    # That of the other one.
    typed.__dict__.pop("pooled_session", None)
    return typed


class ConnectionDriver:
    """Opens connections like *origin*, which stays unconnected.

    :param make_origin: returns a new, unconnected connection with the pool's settings.
    :param name: returns the pool's name, for the log.
    :param answer_timeout: seconds that Redis gets for each answer, unless the connection's own options say it.
    :param on_blocked: is told of each connection on which the broker takes no messages for a while, and why.
    :param on_unblocked: is told when it takes them again.
    :param credentials: called for user and password at each connect, if given.
    :param with_channel: returns whether borrowers are likely to use the default channel of a connection.
    :param loans: knows who has what; without it every connection counts as lent.
    :param own_new: makes each connection, in place of :meth:`new`.
    :param before_close: is called with each connection that is about to be closed.
    """

    def __init__(
        self,
        make_origin: Callable[[], kombu.Connection],
        name: Callable[[], str] = str,
        *,
        answer_timeout: float = CONFIRM_TIMEOUT,
        credentials: Credentials | None = None,
        on_blocked: Callable[[OpenConnection, str], object] | None = None,
        on_unblocked: Callable[[OpenConnection], object] | None = None,
        with_channel: Callable[[], bool] = bool,
        loans: Callable[[], Loans] | None = None,
        own_new: Callable[[], Any] | None = None,
        before_close: Callable[[OpenConnection], object] | None = None,
    ) -> None:
        self._make_origin = make_origin
        self._name = name
        self._answer_timeout = answer_timeout
        self.credentials = credentials
        self._connector = Connector(self._new_to_open)
        self._with_channel = with_channel
        self._on_blocked = on_blocked
        self._on_unblocked = on_unblocked
        self._loans = loans
        self._own_new = own_new
        self._before_close = before_close

    def new(self) -> OpenConnection:
        """A connection with the pool's settings, not connected."""
        return self._like(self._make_origin())

    def _like(self, origin: kombu.Connection) -> OpenConnection:
        settings = dict(with_host(origin)._info(resolve=False))
        for name in ("transport_options", "ssl"):
            # kombu writes into both: retry policies into the one, a server name into the other.
            if isinstance(settings[name], dict):
                settings[name] = dict(settings[name])
        settings["alternates"] = list(settings["alternates"] or ())
        connection = _as_class_of(origin, OpenConnection(**settings))
        connection.pooled_producers = Holding()
        connection.altered = {}
        connection.transport_options = Options(connection.transport_options, connection)
        connection.answer_timeout = self._answer_timeout
        connection.credentials = self.credentials
        return connection

    def _new_to_open(self) -> OpenConnection:
        connection = self.new() if self._own_new is None else self._adopt(self._own_new())
        connection.with_channel = self._with_channel()
        return connection

    def _adopt(self, made: Any) -> OpenConnection:
        """What a subclass of the pool has made with its ``new``, as the pool keeps it."""
        if isinstance(made, lazy):
            made = made()
        if isinstance(made, OpenConnection):
            return made
        if not isinstance(made, kombu.Connection):
            raise TypeError(
                f"pool {self._name()!r}: new() returned {type(made).__name__}, which is no kombu.Connection"
            )
        if isinstance(made, Lease):
            made.end()
            raise TypeError(
                f"pool {self._name()!r}: new() returned a lease of another pool; return a connection of no pool, such "
                "as the lease's clone()"
            )
        # The pool connects it by itself, within its time.
        made.collect()
        return self._like(made)

    def open(self) -> OpenConnection:
        """Connect, as :meth:`Connector.open` does."""
        return self._open(None)

    def open_within(self, seconds: float) -> OpenConnection:
        """:meth:`open` for a caller who has no more than *seconds*, in its own thread."""
        return self._open(seconds)

    def _open(self, seconds: float | None) -> OpenConnection:
        connection = self._connector.open(seconds)
        connection.established = connection._connection
        # A repair in place has its channel from the transport.
        connection.with_channel = False
        self.settle_in(connection)
        connection.driver = self
        connection.note_own_names()
        return connection

    def settle_in(self, item: OpenConnection) -> None:
        """Put what the pool needs to know and to do below a connection that has just been established."""
        item.pool_name = self._name()
        blocked, unblocked = self._on_blocked, self._on_unblocked
        item.pooled_session.settle(
            None if blocked is None else partial(blocked, item),
            None if unblocked is None else partial(unblocked, item),
        )

    def loan_of(self, item: OpenConnection) -> object | None:
        """What stands for the present loan of *item*; ``None`` if it is lent to nobody."""
        return item if self._loans is None else self._loans().loan_of(item)

    def keeps(self, item: OpenConnection) -> bool:
        """Whether the pool has *item*, idle or lent, and not given up."""
        return self._loans is None or self._loans().keeps(item)

    def reopened(self, item: OpenConnection, *, broke: bool) -> None:
        """The borrower of *item* has connected it anew.

        :param broke: whether that was necessary.
        """
        if self._loans is not None:
            self._loans().reopened(item, broke=broke)

    def unblocked(self, item: OpenConnection) -> None:
        """Count *item* as unblocked: its old connection, on which the broker would have said so, is closed."""
        if self._on_unblocked is not None:
            self._on_unblocked(item)

    def check(self, item: OpenConnection, *, thorough: bool) -> bool:
        """Whether *item* may be lent; if *thorough*, only if the broker answers on it."""
        try:
            return item.pooled_session.check(thorough=thorough)
        except Exception as error:
            if not raised_by_library(error):
                raise
            logger.debug("pool %r: a check failed: %r", self._name(), error)
            return False

    def is_hung_up(self, item: OpenConnection) -> bool:
        """Whether a look shows that the peer of *item* has hung up."""
        return item.pooled_session.is_hung_up()

    def keep_alive_every(self, item: OpenConnection) -> float | None:
        """Seconds between two calls of :meth:`keep_alive`; ``None`` for none."""
        return item.pooled_session.keep_alive_every()

    def keep_alive(self, item: OpenConnection, *, lent: bool) -> bool:
        """Say a heartbeat, and whether *item* is alive. Never dials, never waits for the peer.

        :param lent: a borrower may be using it at this moment, so nothing is read; the borrower will notice an end.
        """
        if not lent:
            return item.pooled_session.keep_alive()
        item.pooled_session.beat()
        return True

    def may_pass(self, error: BaseException) -> bool:
        """Whether an opening that failed with *error* may succeed later by itself."""
        # A rotated password reaches the broker and this process at different moments.
        asks = self.credentials is not None
        return may_pass(error) or (asks and is_login_refused(error))

    def close(self, item: OpenConnection, *, broken: bool, timeout: float | None = None) -> None:
        """Say goodbye, within *timeout* seconds; not a word if it is *broken*."""
        if self._before_close is not None:
            self._before_close(item)
        seconds = CLOSE_TIMEOUT if timeout is None else timeout
        sock = getattr(getattr(item._connection, "_transport", None), "sock", None)
        if sock is not None:
            # Bounds TLS's own goodbye, within close(); and that of transports whose sockets are not known.
            with contextlib.suppress(OSError):
                sock.settimeout(ANNOUNCE_TIMEOUT if broken else seconds)
        item.pooled_session.close(broken=broken, seconds=seconds)
        item.pooled_producers.clear()

    def announce_close(self, item: OpenConnection) -> None:
        """Send the goodbye, whose answer :meth:`close` reads: the broker then knows it even if nobody waits."""
        item.pooled_session.announce_close()

    def abandon(self, item: OpenConnection) -> None:
        """In a forked child: close the descriptors, and make every use of *item* an error."""
        item.pooled_session.abandon()
        # The lease's view shares this state: from now on each use of it is an error.
        for producer in item.pooled_producers.values_alive():
            producer.__dict__.clear()
            producer.__dict__.update(ended_state(INHERITED))
        item.__dict__.clear()
        item.__dict__.update(ended_state(INHERITED))
