"""A task of Celery that waits for the commit of a transaction, and how such tasks are sent after it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kombu.exceptions import OperationalError

from kombu_pools_ext import events
from kombu_pools_ext.dispatch import NOT_SENT, add_notes
from kombu_pools_ext.engine.lease import Borrower
from kombu_pools_ext.errors import PublishError, PublishUnknown

__all__ = ["WaitingTask", "send_tasks"]

logger = logging.getLogger("kombu_pools_ext.django")


class WaitingTask:
    """One call of a task. Its ``repr`` shows no arguments, because they may contain secrets.

    :param app: the Celery application whose broker it goes to.
    :param name: the name of the task, for errors and logs.
    :param send: sends it, and raises an ``OperationalError`` if it cannot.
    :param line: the line of the application that has called it.
    """

    __slots__ = ("_line", "app", "name", "send", "task_id")

    def __init__(
        self, app: Any, name: str, task_id: str, send: Callable[[], object], line: Borrower | None
    ) -> None:
        self.app = app
        self.name = name
        self.task_id = task_id
        self.send = send
        self._line = line

    def failed(self, why: str) -> str:
        """Return the line of the log for its failure."""
        line = self._line or "an unknown line"
        return f"sending task {self.name}[{self.task_id}] failed (from {line}): {why}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}[{self.task_id}]>"


def send_tasks(tasks: Sequence[WaitingTask]) -> None:
    """Send *tasks* in their order, all of them, even if one fails.

    If a broker cannot be reached, the remaining tasks of its application are not tried, because each would wait as
    long. Each task that was not sent, or may not have been, is logged; the first ten also become notes on the error.

    :raises Exception: the first error; what interrupts it, such as Ctrl-C, comes before others.
    """
    events.after_commit.send(ids=[one.task_id for one in tasks])
    failures: list[str] = []
    first: BaseException | None = None
    for one, error, tried in _outcomes(tasks):
        if first is None or not isinstance(error, Exception):
            first = error
        told = f"{type(error).__name__}: {error}".rstrip(": ")
        why = told if tried else f"{NOT_SENT}, after {type(error).__name__}"
        failures.append(one.failed(why))
        logger.error("%s", failures[-1])
    if first is None:
        return
    add_notes(first, failures)
    try:
        raise first
    finally:
        # Breaks the cycle of the error, its traceback and this frame.
        del first


def _outcomes(tasks: Sequence[WaitingTask]) -> Iterator[tuple[WaitingTask, BaseException, bool]]:
    """Send *tasks*; yield those that failed, each with the error and whether it was tried."""
    out_of_reach: dict[Any, BaseException] = {}
    interruption: BaseException | None = None
    for one in tasks:
        reason = interruption or out_of_reach.get(one.app)
        if reason is not None:
            yield one, reason, False
            continue
        try:
            one.send()
        except Exception as error:
            if _is_out_of_reach(error):
                out_of_reach[one.app] = error
            yield one, error, True
        except BaseException as error:
            interruption = error
            yield one, error, True


def _is_out_of_reach(error: Exception) -> bool:
    """Return whether *error* concerns the connection to the broker, and not only one task."""
    if isinstance(error, PublishError):
        return isinstance(error, PublishUnknown)
    return isinstance(error, OperationalError | OSError)
