"""Open one item before a pool closes the old ones."""

from __future__ import annotations

import threading
import time
from typing import Generic, TypeVar

from .log_handlers import while_opening
from .pool import Pool

__all__ = ["Trial"]

T = TypeVar("T")

THREAD = "kombu-pools-try"


class Trial(Generic[T]):
    """Open an item in a thread of its own, from now on; the pool counts it only once it is taken in.

    A failure does not affect the pool.

    :param pool: its driver opens the item.
    :param timeout: seconds for the opening.
    """

    def __init__(self, pool: Pool[T], timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout
        # By the real clock: it bounds a wait.
        self._deadline = time.monotonic() + timeout
        # Looked up now: gevent or eventlet may have replaced them.
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._item: T | None = None
        self._error: BaseException | None = None
        self._abandoned = False
        if not pool.spawn(self._run, THREAD):
            self._run()

    def _run(self) -> None:
        pool = self._pool
        try:
            within = max(0.0, self._deadline - time.monotonic())
            item = while_opening(pool, lambda: pool.driver.open_within(within))
        except BaseException as error:
            self._error = error
        else:
            # Closes the race with a thread that abandons it at this moment.
            with self._lock:
                abandoned = self._abandoned
                if not abandoned:
                    self._item = item
            if abandoned:
                self._close(item)
        finally:
            self._ended.set()

    def result(self) -> T:
        """Wait for the item and return it; it belongs to the caller then.

        :raises TimeoutError: if it is not open in time.
        :raises Exception: the error of the opening.
        """
        self._ended.wait(max(0.0, self._deadline - time.monotonic()))
        item = self._take()
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, Exception):
                raise error
        if item is None:
            raise TimeoutError(f"no connection within {self._timeout:.3g} s")
        return item

    def abandon(self) -> None:
        """Close the item if it is open, else as soon as it is."""
        item = self._take()
        if item is not None:
            self._close(item)

    def _take(self) -> T | None:
        with self._lock:
            self._abandoned = True
            item, self._item = self._item, None
        return item

    def _close(self, item: T) -> None:
        try:
            self._pool.driver.close(item, broken=False)
        except Exception as error:
            self._pool.reports.failed("closing", error)
