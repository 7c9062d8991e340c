"""One round trip to a broker on a pooled connection, with a time-out that no peer can exceed.

It runs in a daemon thread, because a name look-up cannot be interrupted, but a wait for the thread can.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from ..broker.connections import ConnectionPool
from ..engine.threads import uwsgi_is_yet_to_fork
from ..errors import PoolExhausted

__all__ = ["RoundTrip"]

#: The part of the time-out that is kept for the thread to end, and its most seconds.
RESERVE, MOST_RESERVED = 0.1, 0.1


class RoundTrip:
    """A round trip, which begins at once in a thread.

    :param pool: lends the connection.
    :param timeout: seconds for waiting, opening, checking and the answer together.
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
            # Without a thread, an opening may take longer than the time-out.
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
        :raises Exception: the error of the pool or the broker.
        """
        if not self._ended.wait(max(0.0, self._began + self._timeout - time.monotonic())):
            raise self._silent_error()
        if self._error is not None:
            raise self._error
        return self._seconds

    def _silent_error(self) -> TimeoutError:
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
            raise self._silent_error()
        try:
            session = connection.item.pooled_session
            with session.within(self._deadline):
                session.ping()
        except Exception as error:
            # The client library may raise any error at a time-out.
            if time.monotonic() >= self._deadline:
                raise self._silent_error() from error
            raise

    def _acquire(self) -> Any:
        try:
            # Without waiting, because if the broker is down, its error is the answer.
            return self._pool.acquire()
        except PoolExhausted:
            return self._pool.acquire(timeout=max(0.0, self._deadline - time.monotonic()))
