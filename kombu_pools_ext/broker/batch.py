"""Many messages in one block: sent without waiting for each, and at its end each with one outcome."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..errors import BatchFailed, Outcome
from .confirms import MOST_PENDING, Confirms, Delivery
from .direct import AT_ONCE
from .wire import LAST_WORD

if TYPE_CHECKING:
    from .producer_views import ProducerView

__all__ = ["DEFAULT_SIZE", "Batch", "BatchState", "BoundedBatch", "checked_size"]

#: kombu's.
DEFAULT_SIZE = 1000

_ACKED = Outcome.ACKED
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


class BatchState:
    """What the outermost batch and those within it share; this one leaves each message to the producer."""

    def __init__(self, view: ProducerView) -> None:
        self.view = view
        #: Whether it takes no more messages.
        self.aborted = False

    def takes(self) -> bool:
        """Asked by the producer for each message: whether it is for :meth:`publish`.

        :raises RuntimeError: if the batch was aborted.
        """
        if self.aborted:
            raise RuntimeError("Cannot publish through an aborted batch")
        return False

    def publish(
        self, item: Any, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float
    ) -> Any:
        """Publish a message that it takes on *item*, the producer's connection."""
        raise NotImplementedError

    def all_results(self) -> dict[str, Outcome]:
        """What became of each message."""
        return {}

    def settle(self) -> None:
        """Wait for what is without an answer, and send what was not sent."""

    def interrupt(self) -> None:
        """Ctrl-C, or a time-out of gevent's: there is no time to wait."""

    def leave(self) -> None:
        """The producer is about to be given back."""

    def end(self) -> None:
        """The block has ended, however it did."""


class _Pipelined(BatchState):
    """With confirms: sent without waiting for each."""

    def __init__(self, view: ProducerView, max_size: int) -> None:
        super().__init__(view)
        self._window = min(max_size, MOST_PENDING)
        #: Whose confirms are waited for; ``None`` before the first message.
        self._confirms: Confirms | None = None
        #: Those of the last message.
        self._counting: Confirms | None = None
        self._results: dict[str, Outcome] = {}
        #: How many of them were no success; and how many of those have been told.
        self._failures = self._told = 0
        self._losses = 0

    def takes(self) -> bool:
        return not self.aborted or super().takes()

    def settled(self, delivery: Delivery) -> None:
        message_id, outcome = delivery.message_id, delivery.outcome
        if outcome is _ACKED:
            # Nothing is better.
            self._results.setdefault(message_id, outcome)
        elif outcome is not None:
            known = self._results.get(message_id)
            if known is None or _WORSE[outcome] > _WORSE[known]:
                self._results[message_id] = outcome
            self._failures += 1

    def all_results(self) -> dict[str, Outcome]:
        pending = () if self._confirms is None else self._confirms.pending.values()
        return {**self._results, **{one.message_id: Outcome.UNKNOWN for one in pending}}

    def publish(
        self, item: Any, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float
    ) -> Any:
        view, wire = self.view, item.wire
        confirms: Confirms | None = item.confirms
        # Within the deadline, written out: a context costs as much as all the encoding.
        before = wire.deadline
        try:
            if before is None or deadline < before:
                wire.deadline = deadline
            if confirms is None or confirms.channel is not view.__dict__["_channel"]:
                # The channel, and with it the count, is there from the first message on.
                channel = view.channel  # type: ignore[attr-defined]  # a property of the producer class
                confirms = item.confirms
                if confirms is not None and confirms.channel is not channel:
                    # One of the borrower's own, where nobody counts: each message waits for its confirm.
                    confirms = None
            if confirms is not None:
                if confirms is not self._counting:
                    self._begin(confirms)
                confirms.pipelined = self._window
            # Not returned from here: an interruption just after the call would fall into what restores the rest.
            done = view._send(item, body, args, kwargs)
        except BaseException as error:
            view._note(item, error)
            if isinstance(error, Exception) and self._has_lost():
                raise self._failure(error) from error
            raise
        finally:
            wire.deadline = before
            if confirms is not None:
                confirms.pipelined = 0
        return done

    def _begin(self, confirms: Confirms) -> None:
        if self._confirms is None:
            self._confirms, self._losses = confirms, confirms.losses
        self._counting, confirms.settled = confirms, self.settled

    def _has_lost(self) -> bool:
        return self._confirms is not None and self._confirms.losses != self._losses

    def settle(self) -> None:
        """Wait for what is without an answer.

        :raises BatchFailed: if not all was confirmed that nobody was told of yet.
        """
        confirms, view = self._confirms, self.view
        if confirms is None:
            return
        item: Any = view._lease.item
        try:
            with item.within(monotonic() + view._pool.confirm_timeout):
                confirms.drain()
        except BaseException as error:
            view._note(item, error)
            if isinstance(error, Exception) and self._has_lost():
                raise self._failure(error) from error
            raise
        if self._failures > self._told:
            raise self._failure()

    def _failure(self, error: BaseException | None = None) -> BatchFailed:
        # After a failure on the wire nothing more is sent.
        self.aborted = self.aborted or error is not None
        self._told = self._failures
        failed = BatchFailed(self.all_results())
        failed.pool = self.view._pool.name
        return failed

    def interrupt(self) -> None:
        confirms = self._confirms
        if confirms is not None and confirms.pending and not self.view._lease.ended:
            confirms.interrupt()

    def end(self) -> None:
        # Where the producer was given back in the block, the count may serve another borrower's batch by now.
        confirms = self._confirms
        if confirms is not None and confirms.settled == self.settled:
            confirms.settled = None


class _Gathered(BatchState):
    """Without confirms, on AMQP: written together."""

    def __init__(self, view: ProducerView, max_size: int) -> None:
        super().__init__(view)
        self._most = max_size
        self._published = 0
        #: Whether the connection broke: nothing is written or read any more.
        self._broken = False

    def takes(self) -> bool:
        if self.aborted:
            return super().takes()
        # The first few are sent at once, each by itself, and tried again.
        self._published += 1
        return self._published > AT_ONCE

    def publish(
        self, item: Any, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float
    ) -> Any:
        wire, direct = item.wire, item.direct
        before = wire.deadline
        try:
            if before is None or deadline < before:
                wire.deadline = deadline
            if direct is not None:
                direct.gathers = True
            done = self.view._send(item, body, args, kwargs)
            if not self._published % self._most:
                wire.flush()
        except BaseException as error:
            self._note(item, error)
            raise
        finally:
            wire.deadline = before
            if direct is not None:
                direct.gathers = False
        return done

    def settle(self) -> None:
        """Write what was gathered.

        :raises Exception: the transport's own, if it could not be written, part of it at least, or if something came
            that says so.
        """
        self._flush(self.view._pool.confirm_timeout, heed=True)

    def _flush(self, seconds: float, *, heed: bool) -> None:
        if self.view._lease.ended or self._broken:
            return
        item: Any = self.view._lease.item
        try:
            with item.within(monotonic() + seconds):
                item.wire.flush()
                if heed and item.direct is not None:
                    # A connection that the broker has ended takes the first write after that.
                    item.direct.heed()
        except BaseException as error:
            self._note(item, error)
            raise

    def _note(self, item: Any, error: BaseException) -> None:
        view = self.view
        view._note(item, error)
        if view._broken and not self._broken:
            self.aborted = self._broken = True
            error.add_note(
                f"pool {view._pool.name!r}: messages that the batch had gathered may not be in the broker"
            )
            if isinstance(error, Exception):
                item.wire.forget()

    def interrupt(self) -> None:
        # They were published, so they are sent if that goes at once.
        self.leave()

    def leave(self) -> None:
        with contextlib.suppress(Exception):
            self._flush(LAST_WORD, heed=False)


class Batch:
    """The context manager that :meth:`ProducerView.batch` returns.

    :param confirmed: whether the broker answers each message.
    :param gathers: whether messages that it does not answer may be written together.
    """

    def __init__(
        self, view: ProducerView, max_size: int, *, confirmed: bool = False, gathers: bool = False
    ) -> None:
        self._view = view
        self._made = (
            _Pipelined(view, max_size)
            if confirmed
            else _Gathered(view, max_size)
            if gathers
            else BatchState(view)
        )
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
            elif isinstance(error, Exception | GeneratorExit):
                self._tell_of(state, error)
            else:
                state.interrupt()
        finally:
            state.end()

    @staticmethod
    def _tell_of(state: BatchState, error: BaseException) -> None:
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
    :param told: returns what to raise for an error of kombu's.
    """

    def __init__(
        self,
        batch: Any,
        item: Any,
        seconds: float,
        told: Callable[[BaseException], BaseException],
    ) -> None:
        self._batch = batch
        self._item = item
        self._seconds = seconds
        self._told = told

    def __enter__(self) -> Self:
        self._batch.__enter__()
        return self

    def flush(self) -> None:
        """Send what has gathered.

        :raises Exception: kombu's, if that failed; also outside the block.
        """
        self._bounded(self._batch.flush)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bounded(lambda: self._batch.__exit__(exc_type, error, traceback))

    def _bounded(self, send: Callable[[], Any]) -> None:
        try:
            with self._item.within(monotonic() + self._seconds):
                send()
        except Exception as error:
            told = self._told(error)
            if told is error:
                raise
            raise told from error
