"""Many messages in one block: sent without waiting for each, and at its end each with one outcome."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol, Self

from ..errors import Outcome
from .batch_state import BatchState

__all__ = ["DEFAULT_SIZE", "Batch", "InBatch", "checked_size"]

#: kombu's.
DEFAULT_SIZE = 1000


class InBatch(Protocol):
    """A producer that may be in a batch."""

    #: The outermost one, within its block.
    _batch: BatchState | None


def checked_size(max_size: Any) -> int:
    """*max_size* if it is a whole number above 0.

    :raises ValueError: if it is not.
    """
    if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size <= 0:
        raise ValueError(f"max_size must be a whole number above 0, not {max_size!r}")
    return max_size


class Batch:
    """The context manager that :meth:`LeasedProducer.batch` returns.

    :param made: what takes the messages if this is the outermost batch of *view*.
    """

    def __init__(self, view: InBatch, made: BatchState) -> None:
        self._view = view
        self._made = made
        self._state: BatchState | None = None
        self._outermost = False
        self._active = False

    @property
    def results(self) -> dict[str, Outcome]:
        """The outcome of each message so far, by its ``message_id``, of the outermost batch; empty without confirms.

        What is on its way is UNKNOWN.
        """
        return (self._state or self._made).all_results()

    def __enter__(self) -> Self:
        if self._state is not None:
            raise RuntimeError("Publish batch context cannot be re-entered")
        outer = self._view._batch
        if outer is None:
            self._view._batch = self._made
            self._outermost = True
        self._state = outer or self._made
        self._active = True
        return self

    def flush(self) -> None:
        """Wait until each message so far has its outcome; without confirms, until it is written.

        :raises BatchFailed: if not all were confirmed.
        :raises RuntimeError: outside the block, or after it was aborted.
        """
        state = self._state
        if not self._active or state is None:
            raise RuntimeError("Publish batch context is not active")
        if state.aborted:
            raise RuntimeError("Cannot flush an aborted batch")
        state.settle()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        state = self._state
        self._active = False
        if state is None:  # pragma: no cover - only a with statement calls this
            return
        if error is not None:
            state.aborted = True
        if not self._outermost:
            return
        self._view._batch = None
        try:
            if error is None:
                state.settle()
            else:
                if isinstance(error, Exception | GeneratorExit):
                    state.settle_after(error)
                else:
                    state.interrupt()
                state.tell(error)
        finally:
            state.end()
