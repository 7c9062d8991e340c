"""Bounds for the sockets of kombu's Redis transport, which has none of its own.

Left to itself, a client waits for a silent Redis without end. Here every answer has a time-out, connecting has one as
a whole, and so has whatever runs within a deadline; and a look at the idle sockets tells which of them have died.
"""

from __future__ import annotations

import contextlib
import errno
import ssl
import time
from collections.abc import Iterator
from typing import Any

from ..settings import CONFIRM_TIMEOUT
from .credentials import CredentialsFailed
from .own_errors import mark, raised_by_library
from .sockets import GONE, Within, system_poll
from .tls import forget_errors

__all__ = [
    "Bounds",
    "Interruption",
    "alive",
    "bound",
    "connecting",
    "keep_one",
    "ping",
    "sockets_of",
    "take_sockets",
]

#: The most bytes that Redis may send while connecting, when its answers are short, and in answer to a publish: half a
#: million queues of an exchange take less.
MOST_IN_HANDSHAKE, MOST_ANSWERED = 1 << 20, 64 << 20

_monotonic = time.monotonic

#: redis-py's names for taking any certificate.
_NOT_VERIFIED = (None, "none", ssl.CERT_NONE)


class Interruption(BaseException):
    """Carries an exception of a signal handler's through redis-py, which would take it for the socket's and try again.

    :param error: the exception, to be raised in its place.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Bounds:
    """The bounds of one connection's sockets, in time and in bytes, for as long as a ``with`` block lasts."""

    __slots__ = ("deadline", "deadline_alone", "ended", "interrupted", "room", "spoken", "unwraps")

    def __init__(self) -> None:
        #: In seconds of ``time.monotonic``; ``None`` is never.
        self.deadline: float | None = None
        #: Whether the deadline alone bounds reads and writes, however short the sockets' own time-out is.
        self.deadline_alone = False
        #: Bytes that may still come; ``None`` is any number.
        self.room: int | None = None
        #: Whether a socket of the connection was closed by the server, or failed.
        self.ended = False
        #: Whether an answer was not read because something else was raised meanwhile, by a signal handler say.
        self.interrupted = False
        #: Set to ``False`` before a publish; ``True`` once something was, or may have been, written.
        self.spoken = False
        #: Whether the present user of the connection takes an :class:`Interruption` for what is in it.
        self.unwraps = False

    def begin_anew(self) -> None:
        """The connection is made anew: what happened to the sockets that it had says nothing of those to come."""
        self.ended = self.interrupted = False

    def within(self, deadline: float | None) -> contextlib.AbstractContextManager[None]:
        """Within, every read and write has ended by *deadline*, in total. Of nested ones the earlier holds.

        :param deadline: in seconds of ``time.monotonic``; ``None`` sets none.
        """
        return Within(self, deadline)

    @contextlib.contextmanager
    def publishing(self, deadline: float, *, alone: bool = False) -> Iterator[None]:
        """:meth:`within`, for a publish: what a signal handler raises meanwhile comes through as it is.

        :param alone: the deadline holds in place of the sockets' own time-out.
        """
        self.spoken = False
        self.unwraps = True
        self.deadline_alone = alone
        try:
            with self.within(deadline), self.hearing(MOST_ANSWERED):
                yield
        except Interruption as interruption:
            raise interruption.error from None
        finally:
            self.unwraps = self.deadline_alone = False

    @contextlib.contextmanager
    def hearing(self, most: int) -> Iterator[None]:
        """Within, raise an :class:`OSError` if more than *most* bytes come; an inner block counts its own bytes."""
        before, self.room = self.room, most
        try:
            yield
        finally:
            self.room = before

    @contextlib.contextmanager
    def at_least(self, seconds: float) -> Iterator[None]:
        """Within, give reads and writes at least *seconds*, even if an outer deadline is earlier."""
        before = self.deadline
        if before is not None:
            self.deadline = max(before, _monotonic() + seconds)
        try:
            yield
        finally:
            self.deadline = before

    def count(self, received: int) -> None:
        """Note that *received* bytes have come.

        :raises OSError: if they are too many.
        """
        if self.room is None:
            return
        self.room -= received
        if self.room < 0:
            self.ended = True
            error = OSError(errno.EMSGSIZE, "Redis sends more than any answer can have")
            mark(error, self)
            raise error

    def shorten(self, timeout: float | None) -> float | None:
        """*timeout*, or what is left.

        :raises TimeoutError: if nothing is.
        """
        if self.deadline is None:
            return timeout
        left = self.deadline - _monotonic()
        if left <= 0:
            raise TimeoutError("no time is left")
        return left if timeout is None else min(timeout, left)

    def blame(self, error: BaseException) -> None:
        """Mark what a socket raised; note what somebody else raised in the middle of an operation."""
        forget_errors()
        if isinstance(error, OSError) and raised_by_library(error):
            # A time-out may be of a mere look at whether something had come.
            self.ended = self.ended or not isinstance(error, TimeoutError)
            mark(error, self)
        else:
            self.interrupted = True


class BoundedSocket:
    """A socket of redis-py's whose reads and writes keep to a deadline besides its own time-out."""

    __slots__ = ("__weakref__", "_bounds", "_sock")

    def __init__(self, sock: Any, bounds: Bounds) -> None:
        self._sock = sock
        self._bounds = bounds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, *arguments: Any) -> bytes:
        """As a socket's."""
        received: bytes = self._within("recv", arguments)
        return received

    def recv_into(self, *arguments: Any) -> int:
        """As a socket's."""
        received: int = self._within("recv_into", arguments)
        return received

    def sendall(self, *arguments: Any) -> None:
        """As a socket's."""
        self._within("sendall", arguments)

    def _within(self, name: str, arguments: tuple[Any, ...]) -> Any:
        bounds = self._bounds
        try:
            done = self._in_time(name, arguments)
        except BaseException as error:
            if isinstance(error, BlockingIOError) and raised_by_library(error):
                raise  # redis-py has looked whether something had come
            bounds.blame(error)
            if bounds.interrupted and bounds.unwraps and isinstance(error, Exception):
                raise Interruption(error) from error
            raise
        if name == "sendall":
            return done
        if not done:
            bounds.ended = True
        bounds.count(done if isinstance(done, int) else len(done))
        return done

    def _in_time(self, name: str, arguments: tuple[Any, ...]) -> Any:
        sock, bounds = self._sock, self._bounds
        patience = sock.gettimeout()
        if bounds.deadline is None or patience == 0:
            bounds.spoken = bounds.spoken or name == "sendall"
            return getattr(sock, name)(*arguments)
        sock.settimeout(bounds.shorten(None if bounds.deadline_alone else patience))
        bounds.spoken = bounds.spoken or name == "sendall"
        try:
            return getattr(sock, name)(*arguments)
        finally:
            sock.settimeout(patience)


class _Connecting:
    """Mixed into redis-py's connection classes: connects within the deadline."""

    bounds: Bounds
    #: The connection of kombu's that it belongs to.
    client: Any
    username: Any
    password: Any
    socket_timeout: Any
    socket_connect_timeout: Any

    def _connect(self) -> BoundedSocket:
        self._log_in()
        own = self.socket_timeout, self.socket_connect_timeout
        try:
            # For TLS's handshake the one, for TCP's the other.
            self.socket_timeout = self.bounds.shorten(own[0])
            self.socket_connect_timeout = self.bounds.shorten(own[1])
            # A connection class of redis-py stands behind this mix-in.
            sock = super()._connect()  # type: ignore[misc]
        except BaseException as error:
            self.bounds.blame(error)
            raise
        finally:
            self.socket_timeout, self.socket_connect_timeout = own
        sock.settimeout(own[0])
        return BoundedSocket(sock, self.bounds)

    def _log_in(self) -> None:
        # At each connect: redis-py makes another socket in the place of one that was closed.
        client = self.client
        if client.credentials is not None:
            seconds = self.bounds.shorten(client.connect_timeout or CONFIRM_TIMEOUT)
            login = client.credentials.ask(seconds, needs_user=False)
            client.log_in(login)
            self.username, self.password = client.userid, login.password


class _Channel:
    """Mixed into the transport's channel class: its connections get time-outs, and it needs only one of them."""

    connection: Any
    async_pool: Any

    @property
    def pool(self) -> Any:
        """The pool of connections for commands.

        kombu keeps a second pool for them, so each connection would be two clients at Redis.
        """
        return self.async_pool

    def _connparams(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        # A channel class of kombu stands behind this mix-in.
        parameters: dict[str, Any] = super()._connparams(*arguments, **options)  # type: ignore[misc]
        client = self.connection.client
        if (most := parameters.get("max_connections")) is not None:
            # kombu's option is for each of its two pools.
            parameters["max_connections"] = 2 * most
        if parameters.get("socket_timeout") is None:
            parameters["socket_timeout"] = client.answer_timeout
        if parameters.get("socket_connect_timeout", 0) is None:
            parameters["socket_connect_timeout"] = client.connect_timeout or CONFIRM_TIMEOUT
        if client.ssl:
            # Older redis-pys compare names only if they are told to; and cannot do so where they verify nothing.
            verifies = parameters.get("ssl_cert_reqs", "required") not in _NOT_VERIFIED
            parameters.setdefault("ssl_check_hostname", verifies)
        kind = parameters["connection_class"]
        parameters["connection_class"] = type(
            kind.__name__,
            (_Connecting, kind),
            {"bounds": client.pooled_session.bounds, "client": client},
        )
        return parameters


class _Unacknowledged:
    """Mixed into kombu's ``QoS``: a message that Redis has handed out is always recorded there as unacknowledged.

    Until then only this process has the message, so an early deadline, such as that of a goodbye, would lose it.
    """

    channel: Any

    def append(self, *arguments: Any) -> None:
        with self._in_time():
            # Kombu's class stands behind this mix-in.
            super().append(*arguments)  # type: ignore[misc]

    def restore_by_tag(self, *arguments: Any, **options: Any) -> None:
        with self._in_time():
            super().restore_by_tag(*arguments, **options)  # type: ignore[misc]  # as above

    def _in_time(self) -> contextlib.AbstractContextManager[None]:
        client = self.channel.connection.client
        return client.pooled_session.bounds.at_least(client.answer_timeout)  # type: ignore[no-any-return]  # of Any


_channel_classes: dict[type[Any], type[Any]] = {}


def bound(transport: Any) -> None:
    """Have the channels that *transport*, which is Redis's, makes keep to the bounds of its client's session."""
    kind = type(transport).Channel
    if kind not in _channel_classes:
        account = kind.QoS
        own = type(account.__name__, (_Unacknowledged, account), {"__doc__": account.__doc__})
        _channel_classes[kind] = type(
            kind.__name__, (_Channel, kind), {"__doc__": kind.__doc__, "QoS": own}
        )
    transport.Channel = _channel_classes[kind]


@contextlib.contextmanager
def connecting(connection: Any, seconds: float) -> Iterator[None]:
    """Within, *connection* has *seconds* to connect, handshake and first answer included."""
    bounds: Bounds = connection.pooled_session.bounds
    with bounds.within(_monotonic() + seconds), bounds.hearing(MOST_IN_HANDSHAKE):
        try:
            yield
        except CredentialsFailed:
            # The credentials did not answer, not the broker.
            raise
        except Exception as error:
            if bounds.deadline is not None and _monotonic() < bounds.deadline:
                raise
            # redis-py's own words say neither for how long, nor that it was connecting.
            where = f"{connection.hostname}:{connection.port or connection.transport.default_port}"
            raise TimeoutError(
                f"no connection to {where} within {seconds:g} s: it did not accept, or said nothing"
            ) from error


def sockets_of(transport: Any) -> Iterator[Any]:
    """The idle sockets of *transport*'s channels, where it is Redis's."""
    for channel in (*transport.channels, *transport._avail_channels):
        pool = channel.__dict__.get("_async_pool")
        for connection in tuple(getattr(pool, "_available_connections", ())):
            sock = connection._sock
            if sock is not None:
                yield sock


def keep_one(channel: Any) -> None:
    """Close what a consumer or a transaction has opened on *channel* besides its one connection to Redis.

    No command may be under way on it.
    """
    pool = channel.__dict__.get("_async_pool")
    if pool is None:
        return
    client = channel.__dict__.get("client")
    held = getattr(client, "connection", None)
    if held is not None:
        cycle = channel.connection.cycle
        sock = cycle._chan_to_sock.pop((channel, client, "BRPOP"), None)
        if sock is not None:
            cycle.poller.unregister(sock)
            cycle._fd_to_chan.pop(sock.fileno(), None)
        client.connection = None
        pool.release(held)
    # redis-py takes the last one next.
    for spare in tuple(getattr(pool, "_available_connections", ()))[:-1]:
        spare.disconnect()


def alive(connection: Any) -> bool:
    """Whether no idle socket of *connection* has been hung up; costs a ``poll(0)``, and asks nobody.

    redis-py looks at a socket when it takes one, and opens another in its place. That serves as long as the server is
    there; where it is not, the borrower would get a connection that can do nothing.
    """
    sockets = list(sockets_of(connection.transport))
    if not sockets:
        return True
    make_poller = system_poll
    if make_poller is None:  # pragma: no cover - platforms without poll()
        return True
    poller = make_poller()
    for sock in sockets:
        poller.register(sock.fileno(), GONE)
    # What can be read is redis-py's to judge.
    return not any(event & GONE for _, event in poller.poll(0))


def ping(client: Any) -> None:
    """Ask Redis something on *client*'s connection, and wait for the answer.

    :raises Exception: redis-py's.
    """
    # Not client.ping(), which connects again, ten times, if the connection is lost.
    pool = client.connection_pool
    try:
        redis = pool.get_connection()
    except TypeError:
        # Before redis-py 5.3 it takes the command's name.
        redis = pool.get_connection("PING")
    try:
        redis.send_command("PING", check_health=False)
        redis.read_response()
    except BaseException:
        redis.disconnect()
        raise
    finally:
        pool.release(redis)


def take_sockets(transport: Any) -> Iterator[Any]:
    """Take from redis-py's connections their sockets, idle and used ones, of all channels of *transport*."""
    for channel in (
        *(getattr(transport, "channels", None) or ()),
        *(getattr(transport, "_avail_channels", None) or ()),
    ):
        clients = [channel.__dict__.get(name) for name in ("client", "subclient")]
        pools = {
            id(pool): pool
            for pool in (
                channel.__dict__.get("_pool"),
                *(getattr(client, "connection_pool", None) for client in clients),
            )
            if pool is not None
        }
        for pool in pools.values():
            for name in ("_available_connections", "_in_use_connections"):
                for connection in tuple(getattr(pool, name, ())):
                    yield getattr(connection, "_sock", None)
                    connection._sock = None
