"""Many messages in one block: sent without waiting for each, and at its end each with one outcome."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from amqp.exceptions import AMQPError, MessageNacked

from ..errors import BatchFailed, LeaseError, Outcome, outcomes_in_words
from .confirms import MOST_PENDING, Confirms, Delivery
from .direct import AT_ONCE
from .soundness import is_from_wire
from .wire import LAST_WORD

if TYPE_CHECKING:
    from .producer_views import ProducerView

__all__ = ["DEFAULT_SIZE", "Batch", "BatchState", "checked_size"]

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
        # Weakly: the connection's confirms, which its pool holds, know this; a lease that is dropped must be collected.
        self._view = weakref.ref(view)
        #: Whether it takes no more messages.
        self.aborted = False

    @property
    def view(self) -> ProducerView:
        """The producer, which whoever uses the batch holds."""
        view = self._view()
        if view is None:  # pragma: no cover - it is the producer, or the block, that calls
            raise LeaseError("the producer of this batch is gone; acquire a new one")
        return view

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

    def tell(self, error: BaseException) -> None:
        """Say on *error*, which ended the block, what became of its messages."""

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
        #: Those of the UNKNOWN that were not written.
        self._unsent: set[str] = set()
        #: How many of them were no success; and how many of those have been told.
        self._failures = self._told = 0
        self._losses = 0
        #: Whether the producer was given back: what is on its way there by now is another borrower's.
        self._left = False

    def takes(self) -> bool:
        return not self.aborted or super().takes()

    def settled(self, delivery: Delivery) -> None:
        outcome = delivery.outcome
        if outcome is _ACKED and not self._failures:
            # Nothing is better.
            self._results.setdefault(delivery.message_id, outcome)
        elif outcome is not None:
            self._record(delivery.message_id, outcome, unsent=delivery.unsent)

    def _record(self, message_id: str, outcome: Outcome, *, unsent: bool = False) -> None:
        known = self._results.get(message_id)
        if known is None or _WORSE[outcome] > _WORSE[known]:
            self._results[message_id] = outcome
        if not unsent:
            # Of two with one id, one was sent.
            self._unsent.discard(message_id)
        elif known is None:
            self._unsent.add(message_id)
        if outcome is not _ACKED:
            self._failures += 1

    def all_results(self) -> dict[str, Outcome]:
        confirms = self._confirms
        if confirms is None or self._left:
            return dict(self._results)
        # A copy first: the reader of the connection takes answers out of it.
        pending = list(confirms.pending.values())
        return {**self._results, **{one.message_id: Outcome.UNKNOWN for one in pending}}

    def publish(
        self, item: Any, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float
    ) -> Any:
        view, wire = self.view, item.wire
        confirms: Confirms | None = item.confirms
        # Whether there is a channel to send it on.
        sending = False
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
            else:
                wire.spoken = False
            sending = True
            # Not returned from here: an interruption just after the call would fall into what restores the rest.
            done = view._send(item, body, args, kwargs)
            if confirms is None:
                self._record(view.message_id_of(kwargs), _ACKED)
        except BaseException as error:
            ended = not sending or self._has_ended(item, confirms)
            if ended or confirms is None or not isinstance(error, Exception):
                # Else it was not begun, and the connection is as good as before: what is pending has its answer later.
                view._note(item, error)
            if confirms is None and isinstance(error, MessageNacked):
                self._record(view.message_id_of(kwargs), Outcome.NACKED)
                self._told = self._failures
            elif ended:
                unsent = confirms is not None or not (sending and wire.spoken)
                failure = self._break_off(item, error, _ids_of(view, kwargs), unsent=unsent)
                if failure is not None:
                    raise failure from error
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

    def _has_ended(self, item: Any, confirms: Confirms | None) -> bool:
        """Whether nothing more can be sent: answers were lost, or the channel or the connection was."""
        return (
            (self._confirms is not None and self._confirms.losses != self._losses)
            or (confirms is not None and confirms.interrupted)
            or not item.wire.carries(item.established)
        )

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
            if self._has_ended(item, confirms):
                failure = self._break_off(item, error)
                if failure is not None:
                    raise failure from error
            raise
        if self._failures > self._told:
            raise self._failure()

    def _break_off(
        self,
        item: Any,
        error: BaseException,
        message_ids: Iterable[str] = (),
        *,
        unsent: bool = False,
    ) -> BatchFailed | None:
        """End the batch by *error*, after which nothing more is sent.

        :param message_ids: what was being published.
        :param unsent: whether it was not sent if it has no number.
        :returns: what to raise in its place; ``None`` for what is not the connection's own, a signal handler's
            exception, say, which is left to go on with a note on it.
        """
        self.aborted = True
        known = self.all_results()
        for message_id in message_ids:
            if message_id not in known:
                self._record(message_id, Outcome.UNKNOWN, unsent=unsent)
        if self._results and _is_the_wires(item, error):
            return self._failure()
        self.tell(error)
        return None

    def _failure(self) -> BatchFailed:
        self._told = self._failures
        failed = BatchFailed(self.all_results(), self._unsent)
        failed.pool = self.view._pool.name
        return failed

    def tell(self, error: BaseException) -> None:
        results = self.all_results()
        if not results or isinstance(error, BatchFailed):
            return
        note = f"pool {self.view._pool.name!r}: {outcomes_in_words(results, self._unsent)}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)

    def interrupt(self) -> None:
        confirms = self._confirms
        if confirms is not None and confirms.pending and not self.view._lease.ended:
            confirms.interrupt()

    def leave(self) -> None:
        self._results, self._left = self.all_results(), True

    def end(self) -> None:
        # Where the producer was given back in the block, the count may serve another borrower's batch by now.
        confirms = self._confirms
        if confirms is not None and confirms.settled == self.settled:
            confirms.settled = None
        self.leave()


def _ids_of(view: ProducerView, kwargs: dict[str, Any]) -> list[str]:
    """The ids of what one ``publish`` sends: more than one where a producer class of the user's does that."""
    return view._names if view._names_below else [kwargs["message_id"]]  # type: ignore[attr-defined]  # it has


def _is_the_wires(item: Any, error: BaseException) -> bool:
    # The first: what the broker said of the channel.
    return isinstance(error, AMQPError) or is_from_wire(item, error)


class _Gathered(BatchState):
    """Without confirms, on AMQP: written together."""

    def __init__(self, view: ProducerView, max_size: int) -> None:
        super().__init__(view)
        self._most = max_size
        self._published = 0
        #: The ids of those that were gathered since the last write.
        self._waiting: list[str] = []
        #: What there is to say since the connection broke: nothing is written or read any more.
        self._broken: str | None = None

    def takes(self) -> bool:
        if self.aborted:
            return super().takes()
        # The first few are sent at once, each by itself, and tried again.
        self._published += 1
        return self._published > AT_ONCE

    def publish(
        self, item: Any, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float
    ) -> Any:
        wire, direct, waiting = item.wire, item.direct, self._waiting
        before = wire.deadline
        try:
            if before is None or deadline < before:
                wire.deadline = deadline
            if direct is not None:
                direct.gathers = True
            done = self.view._send(item, body, args, kwargs)
            if wire.gathered:
                waiting.append(kwargs["message_id"])
                if not self._published % self._most:
                    wire.flush()
            if not wire.gathered:
                waiting.clear()
        except BaseException as error:
            self._note(item, error, kwargs["message_id"])
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
                self._waiting.clear()
                if heed and item.direct is not None:
                    # A connection that the broker has ended takes the first write after that.
                    item.direct.heed()
        except BaseException as error:
            self._note(item, error)
            raise

    def _note(self, item: Any, error: BaseException, message_id: str | None = None) -> None:
        """Take note of *error*, which *message_id* may have been published with."""
        view = self.view
        view._note(item, error)
        if not view._broken or self._broken:
            return
        self.aborted = True
        words = (
            f"pool {view._pool.name!r}: any of the {self._published} messages of the batch may not be in the broker, "
            "which confirms none of them"
        )
        if isinstance(error, Exception):
            waiting = self._waiting
            if message_id is not None and waiting[-1:] != [message_id]:
                waiting.append(message_id)
            direct = item.direct
            lost = item.wire.forget() + (
                message_id is not None and direct is not None and direct.heeding
            )
            if lost and waiting:
                words += f"; from message {waiting[-lost:][0]} on, they were not sent"
            self._broken = words
        error.add_note(words)

    def tell(self, error: BaseException) -> None:
        if self._broken and self._broken not in getattr(error, "__notes__", ()):
            error.add_note(self._broken)

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
            else:
                if isinstance(error, Exception | GeneratorExit):
                    self._settle_after(state, error)
                else:
                    state.interrupt()
                state.tell(error)
        finally:
            state.end()

    @staticmethod
    def _settle_after(state: BatchState, error: BaseException) -> None:
        """What was sent before *error* was sent: it waits for its confirms, so that the connection stays good."""
        try:
            state.settle()
        except (BatchFailed, LeaseError):
            pass  # told on the error
        except Exception as failed:
            if not _is_the_wires(state.view._lease.item, failed):
                # A signal handler's, while it waited.
                raise
            error.add_note(str(failed))
