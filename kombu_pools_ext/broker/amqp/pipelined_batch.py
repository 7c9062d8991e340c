"""A batch whose messages the broker confirms: sent without waiting for each."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import Any

from amqp import spec
from amqp.exceptions import ChannelError, MessageNacked, error_for_code

from ...errors import BatchFailed, Outcome, outcomes_in_words
from ..batch_state import BatchState
from ..sender import BatchSender
from ..session import Session
from .batch_errors import connected_anew, is_of_the_connection, settle_after
from .deliveries import Delivery
from .publisher import MOST_PENDING, ChannelPublisher

__all__ = ["PipelinedBatch"]

_ACKED = Outcome.ACKED
#: Of two messages with one ``message_id`` the one that fared worse is told.
_WORSE = {
    Outcome.ACKED: 0,
    Outcome.RETURNED: 1,
    Outcome.NACKED: 2,
    Outcome.UNKNOWN: 3,
}


class PipelinedBatch(BatchState):
    """With confirms: sent without waiting for each."""

    def __init__(self, view: BatchSender, max_size: int) -> None:
        super().__init__(view)
        self._window = min(max_size, MOST_PENDING)
        #: Whose confirms are waited for; ``None`` before the first message.
        self._confirms: ChannelPublisher | None = None
        #: Those of the last message.
        self._counting: ChannelPublisher | None = None
        self._results: dict[str, Outcome] = {}
        #: Those of the UNKNOWN that were not written.
        self._unsent: set[str] = set()
        #: How many of them were no success; and how many of those have been told.
        self._failures = self._told = 0
        #: What the broker said of the first message that came back.
        self._returned: tuple[int, str, bool] | None = None
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
            self._returned = self._returned or delivery.returned
            self._record(delivery.message_id, outcome, unsent=delivery.unsent)
            if delivery.returned and delivery.returned[2] and outcome is Outcome.RETURNED:
                # A callback has heard of it, so it is no failure, as for a message that is published by itself.
                self._failures -= not self.view.raises_returned

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
        self,
        session: Any,
        body: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float,
    ) -> Any:
        view = self.view
        confirms: ChannelPublisher | None = session.confirms
        # Whether there is a channel to send it on.
        sending = False
        # Within the deadline, written out: a context costs as much as all the encoding.
        before = session.deadline
        try:
            if before is None or deadline < before:
                session.deadline = deadline
            if confirms is None or confirms.channel is not view.__dict__["_channel"]:
                # The channel, and with it the count, is there from the first message on.
                channel = view.channel
                confirms = session.confirms
                if confirms is not None and confirms.channel is not channel:
                    # One of the borrower's own, where nobody counts: each message waits for its confirm.
                    confirms = None
            if confirms is not None:
                if confirms is not self._counting:
                    self._begin(confirms)
                confirms.pipelined = self._window
            else:
                session.spoken = False
            sending = True
            # Not returned from here: an interruption just after the call would fall into what restores the rest.
            done = session.publish(view, body, args, kwargs, deadline)
            if confirms is None:
                self._record(view.message_id_of(kwargs), _ACKED)
        except BaseException as error:
            ended = not sending or self._has_ended(session, confirms)
            if ended or confirms is None or not isinstance(error, Exception):
                # Else it was not begun, and the connection is as good as before: what is pending has its answer later.
                view.note_what_broke(session, error)
            if confirms is None and isinstance(error, MessageNacked):
                self._record(view.message_id_of(kwargs), Outcome.NACKED)
                self._told = self._failures
            elif ended:
                unsent = confirms is not None or not (sending and session.spoken)
                failure = self._break_off(
                    session, error, view.ids_of_publish(kwargs), unsent=unsent
                )
                if failure is not None:
                    raise failure from error
            raise
        finally:
            session.deadline = before
            if confirms is not None:
                confirms.pipelined = 0
        return done

    def _begin(self, confirms: ChannelPublisher) -> None:
        if self._confirms is None:
            self._confirms, self._losses = confirms, confirms.losses
        elif self._confirms.losses != self._losses:
            # The answers to what was published before will not come here.
            raise connected_anew()
        self._counting, confirms.settled = confirms, self.settled

    def _has_ended(self, session: Any, confirms: ChannelPublisher | None) -> bool:
        """Whether nothing more can be sent: answers were lost, or the channel or the connection was."""
        return (
            (self._confirms is not None and self._confirms.losses != self._losses)
            or (confirms is not None and confirms.interrupted)
            or not session.transport.belongs_to(session.connection.established)
        )

    def settle(self) -> None:
        """Wait for what is without an answer.

        :raises BatchFailed: if not all was confirmed that nobody was told of yet.
        """
        confirms, view = self._confirms, self.view
        if confirms is None:
            return
        session: Any = view.leased_item.pooled_session
        try:
            with session.within(monotonic() + view.seconds_to_publish):
                confirms.drain()
        except BaseException as error:
            view.note_what_broke(session, error)
            if self._has_ended(session, confirms):
                failure = self._break_off(session, error)
                if failure is not None:
                    raise failure from error
            raise
        if self._failures > self._told:
            raise self._failure()

    def _break_off(
        self,
        session: Session,
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
        if self._results and is_of_the_connection(session, error):
            return self._failure(error)
        self.tell(error)
        return None

    def _failure(self, cause: BaseException | None = None) -> BatchFailed:
        """Return what to raise; it is of the class of what kombu raises for the first message that failed.

        :param cause: what the connection ended with.
        """
        self._told = self._failures
        results = self.all_results()
        outcome = next((one for one in results.values() if one is not _ACKED), None)
        if outcome is Outcome.NACKED:
            cause = MessageNacked()
        elif outcome is Outcome.RETURNED and self._returned is not None:
            code, text, _ = self._returned
            cause = error_for_code(code, text, spec.Basic.Return, ChannelError)
        failed = BatchFailed(results, self._unsent)
        failed.pool = self.view.name_of_pool
        return failed if cause is None else failed.like(cause)

    def settle_after(self, error: BaseException) -> None:
        settle_after(self, error)

    def tell(self, error: BaseException) -> None:
        results = self.all_results()
        if not results or isinstance(error, BatchFailed):
            return
        note = f"pool {self.view.name_of_pool!r}: {outcomes_in_words(results, self._unsent)}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)

    def interrupt(self) -> None:
        confirms = self._confirms
        if confirms is not None and confirms.pending and not self.view.released:
            confirms.interrupt()

    def leave(self) -> None:
        self._results, self._left = self.all_results(), True

    def end(self) -> None:
        # Where the producer was given back in the block, the count may serve another borrower's batch by now.
        confirms = self._confirms
        if confirms is not None and confirms.settled == self.settled:
            confirms.settled = None
        self.leave()
