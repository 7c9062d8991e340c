"""Making a connection: each broker of a list in turn, each within its time, and errors that tell what to do."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import amqp
import kombu
from kombu.exceptions import OperationalError

from ..engine.loaded import loaded
from ..settings.url_checks import url_problems
from ..settings.urls import with_defaults
from . import redis_sockets, tls
from .addresses import CONNECT_TIMEOUT, Addresses
from .credentials import CredentialsFailed
from .first_channel import FirstChannel
from .handshake import Handshake, WrongProtocol
from .naming import uri_of
from .redis_answers import login_refused, passes

if TYPE_CHECKING:
    from .driver import OpenConnection

__all__ = ["Connector", "NotConnected", "establish", "is_login_refused", "may_pass"]

#: Seconds after which the first of a list, once it has failed, is tried again before the one that works. Long enough
#: that a broker that is down for a night costs next to nothing, short enough that nobody must restart the clients
#: after a fail-over, and about as long as a node of a RabbitMQ cluster needs to come back.
FIRST_AGAIN = 60.0
#: Seconds for that try. A borrower waits for it while another broker is at hand; a good one answers in milliseconds.
TRY_FIRST = 1.0
#: Seconds that a broker gets when there is no time left; 0 would mean that there is no bound.
SHORTEST = 0.001

#: What goes wrong before anybody is asked: the next broker's turn would not mend it.
_NOT_THE_BROKERS = (TypeError, ValueError, ImportError, AttributeError)
#: Reply codes of a broker that says no for good: it would again, unless somebody changes something.
_REFUSALS = frozenset({402, 403, 404, 501, 502, 503, 504, 505, 530, 540})


#: What RabbitMQ says when the virtual host, user or node has reached its limit of connections, or the user or node that
#: of channels: a refusal which passes when one of them closes.
_LIMITS = (
    "connection limit (",
    "number of channels opened for user",
    "number of channels opened on node",
)

#: TLS that ended, or did not, in the middle of a handshake: a server looks like that which stops or starts.
_CUT_SHORT = (
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
    ssl.SSLSyscallError,
    ssl.SSLWantReadError,
    ssl.SSLWantWriteError,
)


class NotConnected(OperationalError):
    """No broker could be connected to; the cause is the last one's error."""

    #: What each broker's attempt ended with, in the order in which they were tried.
    failures: tuple[BaseException, ...] = ()


class Connector:
    """Opens connections, to the first broker of a list that answers, and remembers which one that was.

    Several threads may open at once. They share what is remembered without a lock, and so does a forked child: at
    the worst two of them try the same broker.

    :param make: returns a new, unconnected connection; its list of brokers is always the same.
    :param clock: in seconds, monotonic.
    """

    def __init__(
        self, make: Callable[[], OpenConnection], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make = make
        self._clock = clock
        #: Which of the list answered last.
        self._good = 0
        #: When the first one is to be tried again, if it is not that.
        self._first_again = 0.0

    def open(self, seconds: float | None = None) -> OpenConnection:
        """Connect to each broker in turn, once, until one answers.

        :param seconds: for all of them, where they must not take as long as they may.
        :raises OperationalError: if none does; its cause is the last one's error.
        :raises Exception: what is not a matter of reaching a broker: credentials and virtual hosts that all of them
            refuse, options that make no sense.
        """
        connection = self._make()
        failures: list[Exception] = []
        told: list[str] = []
        ends = None if seconds is None else self._clock() + seconds
        for number, at_most in self._order(connection):
            connection.at_most = at_most
            if ends is not None:
                left = max(SHORTEST, ends - self._clock())
                connection.at_most = left if at_most is None else min(at_most, left)
            if number is not None:
                switch(connection, number)
            host = connection.hostname
            try:
                connection._connection_factory()
            except Exception as error:
                if isinstance(error, CredentialsFailed):
                    raise  # the next broker would get the same credentials
                # A certificate's error is a ValueError too.
                if isinstance(error, _NOT_THE_BROKERS) and not isinstance(error, OSError):
                    raise
                # As it was written: kombu makes an address of localhost, which no certificate is made out to.
                connection.hostname = host
                failures.append(error)
                told.append(f"{_where(connection)}: {_explained(connection, error)}")
            else:
                connection.at_most = None
                self._note(number or 0)
                return connection
        raise _failed(connection, failures, told)

    def _order(self, connection: OpenConnection) -> Iterator[tuple[int | None, float | None]]:
        """The numbers of the brokers, in the order to try them in, each with the seconds it may take.

        ``None`` stands for the one that the connection is set to, and for its own time-out.
        """
        count = len(connection.alt)
        if count < 2:
            yield None, None
            return
        if connection._failover_strategy != "round-robin":
            # An order of the user's own: kombu's, with nothing remembered.
            yield None, None
            for _ in range(count - 1):
                connection.maybe_switch_next()
                yield None, None
            return
        good = self._good
        if good and self._clock() >= self._first_again:
            # Before it is tried: whoever else opens meanwhile goes straight to the good one.
            self._first_again = self._clock() + FIRST_AGAIN
            yield None, TRY_FIRST
            yield from ((number, None) for number in (*range(good, count), *range(1, good)))
            return
        yield good or None, None
        yield from ((number % count, None) for number in range(good + 1, good + count))

    def _note(self, number: int) -> None:
        if number and number != self._good:
            self._first_again = self._clock() + FIRST_AGAIN
        self._good = number


def switch(connection: kombu.Connection, number: int) -> None:
    """Set *connection* to one broker of its list; kombu would keep the port and path of the one before."""
    url = connection.alt[number]
    if "://" in url and not next(url_problems(url), None):
        initial = connection._initial_params
        url = with_defaults(url, bool(initial.get("ssl")))
    connection.switch(url)


def establish(connection: OpenConnection) -> Any:
    """The transport's connection, within the time-out of *connection*, with the host's name checked where TLS is used.

    With AMQP its first channel has been opened as well.

    :raises Exception: the transport's; no descriptor is left open.
    """
    # Errors of other connections, and of other libraries.
    tls.forget_errors()
    # Made first: kombu's for amqps:// sets `ssl`.
    transport = connection.transport
    if getattr(transport, "driver_name", None) != "py-amqp":
        seconds = _seconds_for(connection)
        with redis_sockets.connecting(connection, min(seconds, connection.at_most or seconds)):
            return transport.establish_connection()
    given = connection.ssl
    connection.ssl = tls.for_host(given, connection.hostname)
    checks_name = tls.checks_name(given)
    try:
        addresses = Addresses(_log_in(connection))
        while True:
            first = FirstChannel(transport, kept=connection.with_channel)
            handshake = Handshake(transport, addresses, first.ask, checks_name=checks_name)
            try:
                with handshake:
                    established = transport.establish_connection()
                    handshake.opened()
                    channel = first.wait(established)
            except Exception as error:
                tls.forget_errors()
                another = addresses.failed(handshake.reason(error))
                # A broker that refuses us would do so at its other addresses too. What is no broker is not asked.
                no_broker = isinstance(error, WrongProtocol) or tls.speaks_none(error)
                if not (another and (no_broker or may_pass(error))):
                    if addresses.tried is not None:
                        error.add_note(addresses.tried)
                    raise
            else:
                break
    finally:
        # What a pool is known by.
        connection.ssl = given
    connection.first_channel = channel
    _connects_once(established)
    return established


def _log_in(connection: OpenConnection) -> float | None:
    """Call ``CREDENTIALS`` if there are any; return the seconds that are left for the connection."""
    if connection.credentials is None:
        return connection.at_most
    seconds = connection.connect_timeout or CONNECT_TIMEOUT
    ends = time.monotonic() + min(seconds, connection.at_most or seconds)
    login = connection.credentials.ask(ends - time.monotonic(), needs_user=True)
    connection.log_in(login)
    return max(SHORTEST, ends - time.monotonic())


def _connects_once(established: Any) -> None:
    """Make it an error to read from *established* once it is closed: py-amqp would dial, past the pool."""
    connect = established.connect

    def refuse(*args: Any) -> Any:
        raise amqp.RecoverableConnectionError(
            "the connection is closed, and is not opened again: release it, and acquire another one"
        )

    def connected(callback: Callable[[], Any] | None = None) -> Any:
        return connect(callback) if established.connected else refuse()

    # The first is what py-amqp calls before it dials, to warn of it.
    established._warn_force_connect, established.connect = refuse, connected


def _seconds_for(connection: OpenConnection) -> float:
    seconds = connection.connect_timeout or CONNECT_TIMEOUT
    # Redis's transport has an option of its own, and never looks at the connection's.
    own = (connection.transport_options or {}).get("socket_connect_timeout")
    return max(seconds, own) if isinstance(own, int | float) else seconds


def _where(connection: kombu.Connection) -> str:
    """Return the name of the broker that *connection* is set to."""
    try:
        return uri_of(connection)
    except OSError:
        # No descriptor is free, and kombu's transport, whose defaults the URI needs, takes one.
        return str(connection.transport_cls)


def _explained(connection: kombu.Connection, error: Exception) -> str:
    # The notes name the addresses that were tried, where there are several.
    why = "; ".join((str(error) or type(error).__name__, *getattr(error, "__notes__", ())))
    redis = getattr(connection.get_transport_cls(), "driver_type", None) == "redis"
    what_to_do = tls.remedy(error, connection.hostname, connection.ssl, redis=redis)
    return f"{why}; {what_to_do}" if what_to_do else why


def _failed(connection: OpenConnection, failures: list[Exception], told: list[str]) -> Exception:
    """What to raise when every broker has failed."""
    last = failures[-1]
    ordinary = (*connection.recoverable_connection_errors, OSError)
    if not any(isinstance(error, ordinary) for error in failures):
        # All of them answer, and none will have us: kombu lets that through as it is.
        if len(told) > 1:
            last.add_note("; ".join(told))
        return last
    if len(told) == 1:
        # Whose it is, the pool says.
        message = _explained(connection, last)
    else:
        message = f"none of {len(told)} brokers can be connected to: {'; '.join(told)}"
    error = NotConnected(message)
    error.failures = tuple(failures)
    error.__cause__ = last
    return error


def may_pass(error: BaseException) -> bool:
    """Whether an opening that failed with *error* may succeed later without anybody changing anything.

    A broker that is down, slow or unknown to the name server may come back. A password, a virtual host or a
    certificate that is refused stays so, and what speaks no AMQP will not learn it.
    """
    if isinstance(error, CredentialsFailed):
        return True
    if isinstance(error, NotConnected):
        return any(map(may_pass, error.failures))
    if isinstance(error, OperationalError):
        # Somebody else's wrapping of what a transport raised.
        return error.__cause__ is None or may_pass(error.__cause__)
    if isinstance(error, WrongProtocol):
        return False
    found = tls.tls_error(error)
    if found is not None:
        # Says nothing about anybody's certificate.
        return isinstance(found, _CUT_SHORT) or "timed out" in str(found)
    if isinstance(error, amqp.exceptions.AMQPError):
        if any(words in str(error) for words in _LIMITS):
            return True
        code: int = getattr(error, "reply_code", 0)
        # What py-amqp says itself has none, and what is worth another try is of a class of its own.
        named = code != 0 or isinstance(error, amqp.exceptions.RecoverableConnectionError)
        return named and code not in _REFUSALS
    if isinstance(error, FileNotFoundError):
        return False
    return isinstance(error, OSError | MemoryError) or _redis_may_pass(error)


def is_login_refused(error: BaseException) -> bool:
    """Whether a broker refused the user or password with *error*."""
    if isinstance(error, NotConnected):
        return any(map(is_login_refused, error.failures))
    return isinstance(error, amqp.exceptions.AccessRefused) or login_refused(error)


def _redis_may_pass(error: BaseException) -> bool:
    if passes(error):
        return True
    errors: Any = loaded("redis.exceptions")
    return (
        errors is not None
        and isinstance(error, errors.RedisError)
        # The plain one is an answer to what we asked for: a database that is not there. Its kinds have names.
        and type(error) is not errors.ResponseError
        and not isinstance(
            error,
            errors.AuthenticationError
            | errors.AuthorizationError
            | errors.NoPermissionError
            | errors.AuthenticationWrongNumberOfArgsError,
        )
    )
