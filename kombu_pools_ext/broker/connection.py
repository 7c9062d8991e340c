"""A connection as the pool keeps it, and how its borrower connects it anew, as kombu's ``ensure`` and ``switch`` do.

Then it stays the same lease of the same pool: only what is below it is another one. ``docs/explanation/repair.md``
describes the states, and what may happen at each step.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

import kombu

from ..engine.fork import child_begins, mark
from ..engine.weakrefs import Holding
from ..errors import ConnectTimeout, LeaseError
from ..masking import MASK
from ..settings import CONFIRM_TIMEOUT
from . import tls
from .addresses import SHORTEST
from .amqp.connection import transport_class
from .broker_list import switch_to
from .credentials import Credentials, Login
from .kinds import session_for
from .lazy_attribute import LazyAttribute
from .lent_settings import MISSING, SETTINGS, Options, put_back_attributes
from .naming import uri_of
from .plain import PlainSession
from .pool_key import PoolKey, make_key
from .session import Session

__all__ = ["Driver", "OpenConnection"]

logger = logging.getLogger("kombu_pools_ext")

#: Seconds for everything that is said to the old connection's peer, which may be silent.
LAST_WORD = 1.0
#: What says which broker a connection is set to, and how it is spoken to; a failover changes these.
_PLACE = (
    *("hostname", "userid", "password", "virtual_host", "port", "insist", "ssl", "login_method"),
    *("heartbeat", "transport_cls", "uri_prefix", "credential_provider"),
)
#: The parameters of kombu's ``_ensure_connection``.
_OPTIONS = (
    *("errback", "max_retries", "interval_start", "interval_step", "interval_max"),
    *("callback", "reraise_as_library_errors", "timeout"),
)
_NOT_LENT = (
    "this connection is lent to nobody, or belongs to the process that this one was forked from, so it is not "
    "connected anew; acquire one"
)
#: What kombu adds to a connection as it goes.
_BY_KOMBU = frozenset({"_closed", "_default_channel"})
#: Sets of attributes' names: one for all connections that are alike.
_names: dict[frozenset[str], frozenset[str]] = {}


class Driver(Protocol):
    """What has opened a connection, as the connection sees it."""

    #: What the pool asks for user and password at each connect.
    credentials: Credentials | None

    def new(self) -> OpenConnection:
        """Return a connection with the pool's settings, not connected."""
        ...

    def loan_of(self, item: OpenConnection) -> object | None:
        """What stands for the present loan of *item*; ``None`` if it is lent to nobody."""
        ...

    def keeps(self, item: OpenConnection) -> bool:
        """Whether the pool has *item*, idle or lent, and not given up."""
        ...

    def settle_in(self, item: OpenConnection) -> None:
        """Put what the pool needs to know and to do below *item*, which has just been established."""
        ...

    def reopened(self, item: OpenConnection, *, broke: bool) -> None:
        """Note that the borrower of *item* has connected it anew; *broke* says whether that was necessary."""
        ...

    def unblocked(self, item: OpenConnection) -> None:
        """Count *item* as unblocked."""
        ...

    def close(self, item: OpenConnection, *, broken: bool) -> None:
        """Say goodbye within the driver's time; not a word if *item* is *broken*."""
        ...


class OpenConnection(kombu.Connection):
    """A connection as the pool keeps it; borrowers see it through a lease's own view."""

    #: The transport's connection, as the pool or its borrower has made it.
    established: Any = None
    #: What opens, checks and closes it; ``None`` until the pool has opened it.
    driver: Driver | None = None
    #: Its settings when its borrower connected it anew, until the release has checked them.
    settled_as: PoolKey | None = None
    #: The latest answer of its credentials.
    login: Login | None = None
    #: Whether its host is ``localhost``, which kombu has made an address of.
    by_name: bool = False
    #: What errors and logs call its pool.
    pool_name = ""
    #: Seconds that Redis gets for an answer.
    answer_timeout: float = CONFIRM_TIMEOUT
    #: Called for user and password each time it connects.
    credentials: Credentials | None = None
    #: Seconds for connecting, where it must not take as long as it may.
    at_most: float | None = None
    #: With AMQP, whether the channel that is opened together with it becomes its default channel.
    with_channel: bool = False
    #: The producers bound to it, by their pool: when the pool is collected, so is its producer.
    pooled_producers: Holding[Any, Any]
    #: Seconds for a publish on its default channel that is given no time-out.
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

    #: What it can be asked, whatever its transport. Until it has a transport, nothing is known of its sockets.
    #: Not a ``cached_property``: before Python 3.12 it has one lock for all connections, and a forked child may inherit
    #: that locked.
    pooled_session = LazyAttribute[Session](lambda item: PlainSession(item))

    @property
    def default_channel(self) -> Any:
        """Kombu's; with AMQP it never connects anew, and its publishes are counted."""
        return self.pooled_session.default_channel()

    def kombus_default_channel(self) -> Any:
        """Kombu's."""
        return super().default_channel

    def within(self, deadline: float | None) -> contextlib.AbstractContextManager[None]:
        """As the session's."""
        return self.pooled_session.within(deadline)

    def _init_params(self, **params: Any) -> None:  # type: ignore[override, unused-ignore]  # kombu passes keywords
        # The origin knows whether "amqp" means librabbitmq. To find out, kombu would import gevent and eventlet in
        # a thread of the pool, while another thread may be importing them.
        self.__dict__.pop("by_name", None)
        asked = params.get("transport") or "amqp"
        super()._init_params(**{**params, "transport": "pyamqp" if asked == "amqp" else asked})
        if asked == "amqp":
            self.transport_cls = asked

    def get_transport_cls(self) -> Any:
        """Kombu's; where py-amqp is below it, a subclass of it."""
        return transport_class(super().get_transport_cls())

    def create_transport(self) -> Any:
        """A transport, with a session of its kind."""
        transport = super().create_transport()
        self.pooled_session = session_for(self, transport)
        return transport

    # -- connecting: for the first time, or anew -----------------------------------------------------------

    def _establish_connection(self) -> Any:
        """Kombu's: connect for the first time, or in place of the connection that it had.

        :raises LeaseError: if it was connected before, and is lent to nobody, or belongs to another process.
        :raises ConnectTimeout: if a deadline that holds has passed.
        :raises Exception: the transport's; no descriptor is left open.
        """
        driver = self.driver
        if driver is None:
            # The pool is opening it.
            return self._connect_below()
        loan = self._loan_for_repair(driver)
        left = self._seconds_to_connect()
        self.settled_as = make_key(self)
        was_sound = self.pooled_session.is_sound()
        self._give_up_the_old(driver)
        self.at_most = left
        try:
            established = self._connect_below()
        finally:
            self.at_most = None
        # In this order: a release by another thread closes what it finds here, and this thread looks for the release.
        self.established = self._connection = established
        driver.settle_in(self)
        if driver.loan_of(self) != loan:
            # What the pool has found sound, it keeps, and another borrower may have it by now.
            if not driver.keeps(self):
                with contextlib.suppress(Exception):
                    self.collect()
            raise LeaseError(_NOT_LENT)
        driver.reopened(self, broke=not was_sound)
        logger.debug("pool %r: a borrower has connected its connection anew", self.pool_name)
        return established

    def _connect_below(self) -> Any:
        # Errors of other connections, and of other libraries.
        tls.forget_errors()
        # Made first: kombu's for amqps:// sets `ssl`, and the session is of its kind.
        self.transport  # noqa: B018
        return self.pooled_session.establish()

    def _loan_for_repair(self, driver: Driver) -> object:
        """What stands for its present loan."""
        if not mark[0]:
            # Takes everything away from an item that the parent has.
            child_begins()
        # Asked again: that may have been taken away, too.
        loan = None if self.driver is None else driver.loan_of(self)
        if loan is None:
            raise LeaseError(_NOT_LENT)
        return loan

    def _seconds_to_connect(self) -> float | None:
        """Seconds until the deadline that holds; ``None`` without one.

        :raises ConnectTimeout: if none are left. kombu does not try again after this error.
        """
        deadline = self.pooled_session.deadline
        if deadline is None:
            return None
        left = deadline - time.monotonic()
        if left <= 0:
            raise ConnectTimeout(
                f"pool {self.pool_name!r}: no time is left to connect anew within the time-out of what is being done"
            )
        return left

    def _ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        # kombu's `ensure` calls it, also on the connection of a channel.
        return super()._ensure_connection(**self._within_deadline(args, kwargs))

    def _within_deadline(self, args: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of kombu's ``_ensure_connection``, by name, and kept within the deadline that holds."""
        bounded = {**dict(zip(_OPTIONS, args, strict=False)), **options}
        deadline = self.pooled_session.deadline
        if deadline is not None:
            left = max(0.0, deadline - time.monotonic())
            for name, usual in (("timeout", None), ("interval_max", 30)):
                given = bounded.get(name, usual)
                # Not 0, which means no bound there.
                bounded[name] = max(left, SHORTEST) if not given else min(given, left)
        return bounded

    # -- giving up what is connected -----------------------------------------------------------------------

    def _forget_default_channel(self) -> None:
        """Let go of the default channel, and of what is bound to it."""
        self.untidy = True
        # They publish on it.
        self.pooled_producers.clear()
        self.pooled_session.forget_channel()

    def _give_up_the_old(self, driver: Driver) -> None:
        """Close what it has, and forget what was known of it."""
        self._forget_default_channel()
        self.declared_entities.clear()
        driver.unblocked(self)
        self.pooled_session.disconnect()

    def collect(self, socket_timeout: float | None = None) -> None:
        """Close as kombu's ``collect`` does, within a second whatever the peer does, and give back what was taken."""
        with self.within(time.monotonic() + LAST_WORD):
            self.pooled_session.give_back()
            self.collect_below(socket_timeout)

    def collect_below(self, socket_timeout: float | None = None) -> None:
        """Kombu's."""
        super().collect(socket_timeout)

    def close(self) -> None:
        """Say goodbye and close what is below, within a second; a lease of the connection goes on."""
        if self.driver is not None and self._connection is not None:
            self.driver.close(self, broken=not self.pooled_session.is_sound())

    def revive(self, new_channel: Any) -> None:
        """Close the default channel if it is another one than *new_channel*, and forget what is bound to it."""
        before = self._default_channel
        super().revive(new_channel)
        if self._default_channel is not before:
            self._forget_default_channel()

    # -- another broker ------------------------------------------------------------------------------------

    def switch(self, conn_str: str) -> None:
        """Set it to another broker, for the time of the lease; what was connected is closed."""
        driver = self.driver
        if driver is not None:
            self._loan_for_repair(driver)
            self.note_settings()
        super().switch(conn_str)
        if driver is not None:
            # The pool's user and password are for the pool's brokers.
            self.credentials = driver.credentials if self._is_of_the_list(driver) else None

    def _is_of_the_list(self, driver: Driver) -> bool:
        """Whether the host that it is set to is one of its pool's."""
        if driver.credentials is None:
            return True
        fresh = driver.new()
        for number in range(max(1, len(fresh.alt))):
            if number:
                switch_to(fresh, fresh.alt[number])
            if (fresh.hostname, fresh.port) == (self.hostname, self.port):
                return True
        return False

    def maybe_switch_next(self) -> None:
        """Set it to the next broker of its list, with port and path of that URL; kombu would keep the former ones."""
        if self.cycle:
            switch_to(self, next(self.cycle))

    def is_the_pools(self) -> bool:
        """Whether it is as if the pool had opened it, although its borrower has.

        If it is, it gets the pool's settings again, with the broker of a list that it is connected to.
        """
        driver = self.driver
        if driver is None or self.settled_as is None:
            return True
        fresh = driver.new()
        if self.login is not None:
            fresh.log_in(self.login)
        for url in (None, *fresh.alt):
            if url is not None:
                switch_to(fresh, url)
            if make_key(fresh) == self.settled_as:
                state = self.__dict__
                for name in _PLACE:
                    if name in fresh.__dict__:
                        state[name] = fresh.__dict__[name]
                    self.altered.pop(name, None)
                self.settled_as = None
                return True
        return False

    # -- what a borrower sets ------------------------------------------------------------------------------

    def note_settings(self) -> None:
        """Note the settings, which a borrower is about to change."""
        state = self.__dict__
        for name in SETTINGS:
            self.altered.setdefault(name, state.get(name, MISSING))
        self.untidy = True

    def note_own_names(self) -> None:
        """Note which attributes it, which has just been opened, has or may get from the pool itself."""
        kinds = type(self).__mro__
        names = _BY_KOMBU.union(
            self.__dict__, *(getattr(one, "__annotations__", ()) for one in kinds)
        )
        self.own_names = _names.setdefault(names, names)

    def put_back_settings(self) -> None:
        """Forget what a borrower has set."""
        state = self.__dict__
        put_back_attributes(state, self.altered)
        options = self.transport_options
        if isinstance(options, Options):
            options.put_back()
        for name in state.keys() - self.own_names:
            del state[name]
        # This one is there only while the lease is being ended.
        self.size = len(state) - ("tidied_by" in state)

    # -- user and password, names and copies -----------------------------------------------------------------

    def log_in(self, login: Login) -> None:
        """Connect as *login* from now on; copies of the connection do so too."""
        self.login = login
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
