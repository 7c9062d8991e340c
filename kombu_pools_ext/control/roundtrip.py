"""One round trip to a broker on a pooled connection, bounded whatever the peer does.

It runs in a daemon thread, for a name look-up is nobody's to interrupt; whoever waits for it gives up in time.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from kombu.exceptions import OperationalError

from ..broker.connections import ConnectionPool
from ..broker.liveness import is_amqp
from ..engine.threads import uwsgi_is_yet_to_fork
from ..errors import PoolExhausted

__all__ = ["RoundTrip"]

#: What is kept of the time-out for the thread to end in: this part of it, and at most so many seconds.
RESERVE, MOST_RESERVED = 0.1, 0.1


class RoundTrip:
    """A round trip under way: it begins at once.

    :param pool: lends the connection.
    :param timeout: seconds for waiting, opening, checking and the answer, together.
    """

    def __init__(self, pool: ConnectionPool, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout
        self._began = time.monotonic()
        self._deadline = self._began + timeout - min(timeout * RESERVE, MOST_RESERVED)
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._seconds = 0.0
        if uwsgi_is_yet_to_fork():
            # Without a thread; then an opening takes as long as it takes.
            self._run()
            return
        try:
            threading.Thread(target=self._run, name="kombu-pools-ping", daemon=True).start()
        except RuntimeError as error:
            self._error = error
            self._ended.set()

    def result(self) -> float:
        """Wait for the end of the round trip, or of the time-out.

        :returns: the seconds it took.
        :raises TimeoutError: if the broker was silent.
        :raises Exception: whatever the pool or the broker answered.
        """
        if not self._ended.wait(max(0.0, self._began + self._timeout - time.monotonic())):
            raise self._silence()
        if self._error is not None:
            raise self._error
        return self._seconds

    def _silence(self) -> TimeoutError:
        return TimeoutError(f"no answer within {self._timeout:.3g} s")

    def _run(self) -> None:
        try:
            with self._acquire() as connection:
                self._ask(connection)
                self._seconds = time.monotonic() - self._began
        except BaseException as error:
            self._error = error
        finally:
            self._ended.set()

    def _ask(self, connection: Any) -> None:
        if time.monotonic() >= self._deadline:
            raise self._silence()
        try:
            with connection.item.within(self._deadline):
                _speak(connection)
        except Exception as error:
            # However the library below has put it.
            if time.monotonic() >= self._deadline:
                raise self._silence() from error
            raise

    def _acquire(self) -> Any:
        try:
            # Not to wait for a broker that is down: that it is down is the answer.
            return self._pool.acquire()
        except PoolExhausted:
            return self._pool.acquire(timeout=max(0.0, self._deadline - time.monotonic()))


def _speak(connection: Any) -> None:
    """Ask the broker something, and wait for its answer."""
    if is_amqp(connection):
        connection.channel().close()
    elif connection.transport.driver_type == "redis":
        _ping_redis(connection.default_channel.client)
    elif not connection.connected:
        # There is no question that all the others understand: being connected is the answer.
        raise OperationalError("the connection is lost")


def _ping_redis(client: Any) -> None:
    # Not client.ping(), which dials again, ten times, when it is hung up on.
    pool = client.connection_pool
    try:
        redis = pool.get_connection()
    except TypeError:
        # Before redis-py 5.3 it wants the command's name.
        redis = pool.get_connection("PING")
    try:
        redis.send_command("PING", check_health=False)
        redis.read_response()
    except BaseException:
        redis.disconnect()
        raise
    finally:
        pool.release(redis)
