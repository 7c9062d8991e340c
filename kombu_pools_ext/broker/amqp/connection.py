"""Connections of py-amqp, and kombu's transport that makes them, as the pools need them.

A connection is opened within a :class:`~.handshake.Handshake`, and never a second time. What classes of
kombu's, of py-amqp's or of a user's make becomes one of the pool's before it is used. Its channels remember what has to
end with a lease, and the pool is told first what the broker says to the connection as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import amqp
from amqp.exceptions import UnexpectedFrame
from kombu.transport import pyamqp

from ..left import note_untidy
from .adopting import change_class, subclass
from .channel import adopt_channel, channel_class
from .handshake import Handshake
from .inbound import Inbound
from .reading import UNREADABLE, told
from .transport import adopt_transport

__all__ = ["Connection", "Transport", "TransportBase", "transport_class"]


class _Callback:
    """An attribute of a connection that a borrower may set for the time of its lease."""

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, established: Any, owner: type[Any] | None = None) -> Any:
        return self if established is None else established.__dict__.get(self._name)

    def __set__(self, established: Any, callback: Any) -> None:
        established.__dict__[self._name] = callback
        note_untidy(established)


class _Confirming:
    """Whether what is published on a connection is confirmed; what a borrower sets is for the time of its lease."""

    def __get__(self, established: Any, owner: type[Any] | None = None) -> Any:
        return self if established is None else established.__dict__["confirm_publish"]

    def __set__(self, established: Any, value: Any) -> None:
        state = established.__dict__
        client = state.get("client")
        if client is not None:
            state.setdefault("confirmed_before", state["confirm_publish"])
            client.untidy = True
        state["confirm_publish"] = value


class _ChannelClass:
    """The class of a connection's channels: below the one that its own class says at this moment."""

    def __get__(self, established: Any, owner: type[Any]) -> Any:
        # For type checkers, which know no super() of another class.
        parent: Any = super
        own = parent(ConnectionBase, owner if established is None else established).Channel
        return channel_class(own) if isinstance(own, type) else own


class ConnectionBase(amqp.Connection):
    """Mixed into a connection class of py-amqp; :func:`_adopt` makes an object of that one of this class."""

    #: Whether it is the pool that reads: nobody else is called then.
    quiet = False
    #: Whether it is read because something came to it that nobody has asked for.
    idle = False
    #: Whether the broker has said that it takes no messages for now.
    is_blocked = False
    #: The pool's own, which no borrower can put something else in the place of.
    when_blocked: Callable[[str], object] | None = None
    when_unblocked: Callable[[], object] | None = None

    Channel = _ChannelClass()
    on_blocked = _Callback()
    on_unblocked = _Callback()
    confirm_publish = _Confirming()

    # Whether the broker has said what it wants of the connection; and whether that is, or was, open.
    _is_tuned = _is_opened = False
    # Bounds the opening; ``None`` once it is open.
    _handshake: Handshake | None = None

    # -- its opening --------------------------------------------------------------------------------------

    def adopted(self, handshake: Handshake) -> None:
        """Be opened within *handshake*, or note that it is open already; another class has made it."""
        handler: Any = self.frame_handler_cls  # type: ignore[has-type]  # py-amqp ships no types
        self.frame_handler_cls = partial(Inbound, handler)
        if self._transport is None:
            self._handshake = handshake
            return
        adopt_transport(self._transport)
        for number, channel in tuple(self.channels.items()):
            if number:
                adopt_channel(channel)
        passes_on: Any = self._on_inbound_frame  # type: ignore[has-type]  # py-amqp ships no types
        self._on_inbound_frame = Inbound(lambda *_: passes_on, self, None)
        self.opened()
        handshake.opened_by_another(self, self._transport.session)

    def Transport(self, *args: Any, **options: Any) -> Any:  # noqa: N802  # py-amqp's name
        """Return a new transport, not connected, that is made as py-amqp's method of this name does it."""
        transport = adopt_transport(super().Transport(*args, **options))
        if self._handshake is not None:
            transport.opening = self._handshake
            self._handshake.begin(self, transport)
        return transport

    def opened(self) -> None:
        """Note that the opening has ended: what comes once for each connection must not come again."""
        self._handshake = None
        self._is_opened = True
        self._transport.opened(self.frame_max, self.bytes_recv)

    def channel(self, *args: Any, **kwargs: Any) -> Any:
        """Return a channel, as py-amqp's method of this name does."""
        return adopt_channel(super().channel(*args, **kwargs))

    def connect(self, callback: Any = None) -> Any:
        if self._is_opened and not self.connected:
            self._refuse_to_connect()
        return super().connect(callback)

    def _warn_force_connect(self, attr: str) -> None:
        # Called by py-amqp before it dials, which would go past the pool.
        self._refuse_to_connect()

    @staticmethod
    def _refuse_to_connect() -> NoReturn:
        raise amqp.RecoverableConnectionError(
            "the connection is closed, and is not opened again: release it, and acquire another one"
        )

    def _on_start(self, *args: Any) -> None:
        self._check_that_it_is_new()
        super()._on_start(*args)

    def _on_secure(self, *args: Any) -> None:
        self._check_that_it_is_new()
        super()._on_secure(*args)

    def _on_tune(self, channel_max: int, frame_max: int, heartbeat: int) -> None:
        handshake = self._handshake
        if handshake is None or self._is_tuned:
            raise self._begun_again()
        frame_max = handshake.frame_max(frame_max)
        self._is_tuned = True
        handshake.answer(partial(super()._on_tune, channel_max, frame_max, heartbeat))

    def _on_open_ok(self, *args: Any) -> None:
        self._check_that_it_is_new()
        super()._on_open_ok(*args)

    def _check_that_it_is_new(self) -> None:
        if self._is_opened:
            raise self._begun_again()

    @staticmethod
    def _begun_again() -> UnexpectedFrame:
        return UnexpectedFrame("the broker begins the handshake again")

    # -- what comes ---------------------------------------------------------------------------------------

    def blocking_read(self, timeout: float | None = None) -> Any:
        try:
            return super().blocking_read(timeout)
        except UNREADABLE as error:
            newer = told(error, getattr(getattr(self, "client", None), "pooled_session", None))
            if newer is error:
                raise
            raise newer from error

    def _on_blocked(self) -> None:
        self.is_blocked = True
        if self.when_blocked is not None:
            # py-amqp does not read the reason; these are its words.
            self.when_blocked("connection blocked, see broker logs")
        if not self.quiet:
            super()._on_blocked()

    def _on_unblocked(self) -> None:
        self.is_blocked = False
        if self.when_unblocked is not None:
            self.when_unblocked()
        if not self.quiet:
            super()._on_unblocked()


class Connection(ConnectionBase, pyamqp.Connection):
    """A connection of kombu's transport for py-amqp."""


#: By class of py-amqp's connections.
_connections: dict[type[Any], type[Any]] = {pyamqp.Connection: Connection}


def _adopt(established: Any, handshake: Handshake) -> Any:
    """Return *established*, of kombu's class or of the application's, as one of the pool's."""
    if not isinstance(established, ConnectionBase):
        change_class(established, subclass(type(established), ConnectionBase, _connections))
        established.adopted(handshake)
    return established


class TransportBase(pyamqp.Transport):
    """Mixed into a transport class of kombu's for py-amqp.

    It makes connections as a pool needs them by :meth:`open`, and as kombu does otherwise.
    """

    #: Returns a socket that is connected to a host and a port; ``None`` is the system's way.
    dial: Callable[[str, int], Any] | None = None

    _handshake: Handshake | None = None

    def open(self, handshake: Handshake) -> Any:
        """Establish a connection within *handshake*."""
        self._handshake = handshake
        try:
            established = _adopt(self.establish_connection(), handshake)
        finally:
            self._handshake = None
        if getattr(established, "client", None) is None:
            established.client = self.client
        return established

    def Connection(self, **options: Any) -> Any:  # type: ignore[override, unused-ignore]  # noqa: N802  # kombu's name
        """Return a new connection, not connected: kombu calls its class, which this stands in the place of."""
        established = super().Connection(**options)
        return established if self._handshake is None else _adopt(established, self._handshake)


class Transport(TransportBase, pyamqp.Transport):
    """Kombu's transport for py-amqp."""


#: By class of kombu's transports.
_transports: dict[type[Any], type[Any]] = {pyamqp.Transport: Transport}


def transport_class(kind: type[Any]) -> type[Any]:
    """Return the class to use for *kind*, a transport class of kombu's: a subclass of it if py-amqp is below it."""
    if not issubclass(kind, pyamqp.Transport) or issubclass(kind, TransportBase):
        return kind
    return subclass(kind, TransportBase, _transports)
