"""Waking a relay when somebody has written to the outbox."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from .backoff import Backoff
from .database import Database, Listener
from .schema import CHANNEL
from .verdicts import told

__all__ = ["WakeUp"]

logger = logging.getLogger("kombu_pools_ext.outbox")

#: Seconds between two looks whether the relay has ended.
_LOOK = 1.0
#: Seconds that the end of a relay waits for the thread.
_END = 5.0


class WakeUp:
    """A thread that listens to the database's notifications, where the database has some.

    :param wake: called for notifications, from the thread.
    :param backoff: the pauses between two tries to connect.
    """

    def __init__(self, database: Database, wake: Callable[[], object], backoff: Backoff) -> None:
        self._database = database
        self._wake = wake
        self._backoff = backoff
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        #: Whether the last try to connect failed; a database without notifications is no failure.
        self._failed = False

    def start(self) -> None:
        """Listen from now on. Where the database has no notifications, nothing happens: the relay polls."""
        listener = self._connect()
        if listener is None and not self._failed:
            return
        self._thread = threading.Thread(
            target=self._run, args=(listener,), name="kombu-pools-outbox-listener", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_END)

    def _connect(self) -> Listener | None:
        self._failed = False
        try:
            return self._database.listen(CHANNEL)
        except self._database.errors as error:
            self._failed = True
            logger.warning("outbox: cannot listen to the database's notifications: %s", told(error))
            return None

    def _run(self, listener: Listener | None) -> None:
        failures = 0
        while not self._ended.is_set():
            if listener is None:
                self._ended.wait(self._backoff.seconds(failures))
                failures += 1
                listener = self._connect()
                if listener is not None:
                    # What was written in between has notified nobody.
                    self._wake()
                continue
            try:
                if listener.wait(_LOOK):
                    self._wake()
                failures = 0
            except self._database.errors as error:
                logger.warning("outbox: the listening connection broke: %s", told(error))
                _close(listener, self._database.errors)
                listener = None
        if listener is not None:
            _close(listener, self._database.errors)


def _close(listener: Listener, errors: tuple[type[Exception], ...]) -> None:
    try:
        listener.close()
    except errors:
        # It is broken already.
        pass
