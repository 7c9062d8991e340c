"""Many messages in one block: sent without waiting for each, and at its end each with one outcome."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..errors import BatchFailed, Outcome
from .confirms import MOST_PENDING, Confirms, Delivery

if TYPE_CHECKING:
    from .producer_views import ProducerView

__all__ = ["DEFAULT_SIZE", "Batch", "BoundedBatch", "checked_size"]

#: kombu's.
DEFAULT_SIZE = 1000

#: Of two messages with one ``message_id`` the one that fared worse is told.
_WORSE = {
    Outcome.ACKED: 0,
    Outcome.RETURNED: 1,
    Outcome.NACKED: 2,
    Outcome.UNKNOWN: 3,
}


def checked_size(max_size: Any) -> int:
    """*max_size* if it is a whole number above 0.

    :raises ValueError: if it is not.
    """
    if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size <= 0:
        raise ValueError(f"max_size must be a whole number above 0, not {max_size!r}")
    return max_size


class _State:
    """What the outermost batch and those within it share."""

    def __init__(self, view: ProducerView, max_size: int, *, pipelined: bool) -> None:
        self.view = view
        self.window = min(max_size, MOST_PENDING) if pipelined else 0
        #: Whose confirms are waited for; ``None`` before the first message, and where there are none.
        self.confirms: Confirms | None = None
        self.results: dict[str, Outcome] = {}
        #: How many of them were no success; and how many of those have been told.
        self.failures = self.told = 0
        #: Whether it takes no more messages.
        self.aborted = False
        self._losses = 0

    def settled(self, delivery: Delivery) -> None:
        message_id, outcome = delivery.message_id, delivery.outcome
        if outcome is None:  # pragma: no cover - the type has it, a message that is settled has not
            return
        known = self.results.get(message_id)
        if known is None or _WORSE[outcome] > _WORSE[known]:
            self.results[message_id] = outcome
        if outcome is not Outcome.ACKED:
            self.failures += 1

    def all_results(self) -> dict[str, Outcome]:
        pending = () if self.confirms is None else self.confirms.pending.values()
        return {**self.results, **{one.message_id: Outcome.UNKNOWN for one in pending}}

    def publish(
        self, publish: Callable[..., Any], body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        view = self.view
        item: Any = view._lease.item
        confirms: Confirms | None = None
        wire = item.wire
        # Within a deadline, written out: a context costs as much as all the encoding.
        before, deadline = wire.deadline, monotonic() + view._seconds(kwargs)
        try:
            if before is None or deadline < before:
                wire.deadline = deadline
            # The channel, and with it the count, is there from the first message on.
            channel = view.channel  # type: ignore[attr-defined]  # a property of the producer class
            counting: Confirms | None = item.confirms
            if counting is None or counting.channel is not channel:
                # A channel of the borrower's own, where nobody counts: each message waits for its confirm.
                return publish(body, *args, **kwargs)
            confirms = counting
            if self.confirms is None:
                self.confirms, self._losses = counting, counting.losses
            counting.pipelined, counting.settled = self.window, self.settled
            done = publish(body, *args, **kwargs)
        except BaseException as error:
            view._note(item, error)
            if isinstance(error, Exception) and self._has_lost():
                raise self.failure(error) from error
            raise
        finally:
            wire.deadline = before
            if confirms is not None:
                confirms.pipelined = 0
        return done

    def _has_lost(self) -> bool:
        return self.confirms is not None and self.confirms.losses != self._losses

    def settle(self) -> None:
        """Wait for what is without an answer.

        :raises BatchFailed: if not all was confirmed that nobody was told of yet.
        """
        confirms, view = self.confirms, self.view
        if confirms is None:
            return
        item: Any = view._lease.item
        try:
            with item.within(monotonic() + view._pool.confirm_timeout):
                confirms.drain()
        except BaseException as error:
            view._note(item, error)
            if isinstance(error, Exception) and self._has_lost():
                raise self.failure(error) from error
            raise
        if self.failures > self.told:
            raise self.failure()

    def failure(self, error: BaseException | None = None) -> BatchFailed:
        # After a failure on the wire nothing more is sent.
        self.aborted = self.aborted or error is not None
        self.told = self.failures
        failed = BatchFailed(self.all_results())
        failed.pool = self.view._pool.name
        return failed


class Batch:
    """The context manager that :meth:`ProducerView.batch` returns."""

    def __init__(self, view: ProducerView, max_size: int, *, pipelined: bool) -> None:
        self._view = view
        self._made = _State(view, max_size, pipelined=pipelined)
        self._state: _State | None = None
        self._outermost = False
        self._active = False

    @property
    def results(self) -> dict[str, Outcome]:
        """The outcome of each message so far, by its ``message_id``, of the outermost batch; empty without confirms.

        What is on its way is UNKNOWN.
        """
        return self._made.all_results() if self._state is None else self._state.all_results()

    def pipelines(self) -> bool:
        """Called by the producer, within the block: whether the batch takes the message itself.

        :raises RuntimeError: if the batch was aborted.
        """
        if self._made.aborted:
            raise RuntimeError("Cannot publish through an aborted batch")
        return self._made.window > 0

    def publish(
        self, publish: Callable[..., Any], body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Called by the producer, within the block, with its own ``publish``."""
        return self._made.publish(publish, body, args, kwargs)

    def __enter__(self) -> Self:
        if self._state is not None:
            raise RuntimeError("Publish batch context cannot be re-entered")
        outer = self._view._batch
        if outer is None:
            self._view._batch = self
            self._outermost = True
        self._state = self._made if outer is None else outer._made
        self._active = True
        return self

    def flush(self) -> None:
        """Wait until each message so far has its outcome.

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
        confirms = state.confirms
        try:
            if error is None:
                state.settle()
            elif confirms is None:
                pass
            elif isinstance(error, Exception | GeneratorExit):
                self._tell_of(state, error)
            elif confirms.pending and not self._view._lease.ended:
                # Ctrl-C, or a time-out of gevent's: no time to wait.
                confirms.interrupt()
        finally:
            # Where the producer was given back in the block, the count may serve another borrower's batch by now.
            if confirms is not None and confirms.settled == state.settled:
                confirms.settled = None

    @staticmethod
    def _tell_of(state: _State, error: BaseException) -> None:
        """What was sent before *error* was sent: it waits for its confirms, so that the connection stays good."""
        try:
            state.settle()
        except Exception as failed:
            if not isinstance(error, BatchFailed):
                error.add_note(str(failed))


class BoundedBatch:
    """A batch of kombu's, whose sending keeps to the pool's time as well.

    :param batch: kombu's context manager.
    :param item: the connection that it sends on, which has bounds.
    :param seconds: for each sending, all its answers included.
    """

    def __init__(self, batch: Any, item: Any, seconds: float) -> None:
        self._batch = batch
        self._item = item
        self._seconds = seconds

    def __enter__(self) -> Self:
        self._batch.__enter__()
        return self

    def flush(self) -> None:
        """Send what has gathered.

        :raises Exception: kombu's, if that failed; also outside the block.
        """
        with self._item.within(monotonic() + self._seconds):
            self._batch.flush()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._item.within(monotonic() + self._seconds):
            self._batch.__exit__(exc_type, error, traceback)
