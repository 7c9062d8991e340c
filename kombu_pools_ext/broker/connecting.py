"""Making a connection: each broker of a list in turn, each within its time, and errors that tell what to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import kombu

from .addresses import SHORTEST
from .broker_list import position_of, switch_to, turn_cycle
from .connection import OpenConnection
from .credentials import CredentialsFailed
from .failed_openings import NotConnected
from .naming import uri_of

__all__ = ["Connector"]

#: Seconds after which the first of a list, once it has failed, is tried again before the one that works. Long enough
#: that a broker that is down for a night costs next to nothing, short enough that nobody must restart the clients
#: after a fail-over, and about as long as a node of a RabbitMQ cluster needs to come back.
FIRST_AGAIN = 60.0
#: Seconds for that try. A borrower waits for it while another broker is at hand; a good one answers in milliseconds.
TRY_FIRST = 1.0
#: What goes wrong before anybody is asked: the next broker's turn would not mend it.
_NOT_THE_BROKERS = (TypeError, ValueError, ImportError, AttributeError)


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
        #: Which of the list answered last, counted from the one that its connections are set to.
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
        begin = position_of(connection)
        for offset, at_most in self._order(connection):
            connection.at_most = at_most
            if ends is not None:
                left = max(SHORTEST, ends - self._clock())
                connection.at_most = left if at_most is None else min(at_most, left)
            number = None if offset is None else (begin + offset) % len(connection.alt)
            if number is not None:
                switch_to(connection, connection.alt[number])
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
                self._note(offset or 0)
                turn_cycle(connection, begin if number is None else number)
                return connection
        raise _failed(connection, failures, told)

    def _order(self, connection: OpenConnection) -> Iterator[tuple[int | None, float | None]]:
        """The brokers, in the order to try them in, each with the seconds it may take.

        They are numbered from the one that the connection is set to, for which ``None`` stands; as seconds, that
        stands for the connection's own time-out.
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
            # Before it is tried: other openings meanwhile go straight to the good one.
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


def _where(connection: kombu.Connection) -> str:
    """Return the name of the broker that *connection* is set to."""
    try:
        return uri_of(connection)
    except OSError:
        # No descriptor is free, and kombu's transport, whose defaults the URI needs, takes one.
        return str(connection.transport_cls)


def _explained(connection: OpenConnection, error: Exception) -> str:
    # The notes name the addresses that were tried, where there are several.
    why = "; ".join((str(error) or type(error).__name__, *getattr(error, "__notes__", ())))
    what_to_do = connection.pooled_session.remedy(error)
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
