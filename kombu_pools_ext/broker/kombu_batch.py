"""kombu's own batch: bounded in time, an error of it says which messages it is about, and it ends with its lease."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import local
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, Self

import kombu.exceptions

from ..errors import Outcome, PublishRefused
from .batch import InBatch
from .batch_state import BatchState
from .sender import BatchSender
from .session import Session
from .soundness import is_interruption

__all__ = ["BoundedBatch"]

logger = logging.getLogger("kombu_pools_ext")

#: What kombu's batch raises for whatever a sending has ended with.
_BATCHS: Any = getattr(kombu.exceptions, "BatchPublishError", ())


class _OfOneLease(local):
    """Where kombu keeps the batch that a thread is in; the pooled producer's would go on to the next borrower."""


class _Sendings(BatchState):
    """Which messages wait to be sent together, in the outermost batch and those within it.

    :param batch: kombu's context manager.
    :param session: that of the connection: unless it sends messages together, each is sent at once.
    """

    def __init__(self, view: BatchSender, batch: Any, session: Session) -> None:
        super().__init__(view)
        self._batch = batch
        self._sends_together = session.sends_together
        self._given = 0
        #: The ids of those that wait.
        self._waiting: list[str] = []
        #: What redis-py keeps their commands in: it takes another list after each sending, however that has ended.
        self._commands: Any = None
        #: kombu's batches whose block has begun, and not ended: one for each thread, and those within it.
        self.open: list[Any] = []
        #: Whether the producer was given back: the ends of the blocks have nothing to do.
        self.left = False

    def _kept(self) -> Any:
        session = getattr(self._batch.state, "session", None)
        return None if session is None else session.pipeline.command_stack

    def _sent(self) -> bool:
        """Whether there was a sending since the last look."""
        before, self._commands = self._commands, self._kept()
        return self._commands is not before

    def takes(self) -> bool:
        # What kombu sends at once is not of a batch.
        return self._sends_together and not getattr(self._batch.state, "immediate", False)

    def publish(
        self,
        session: Session,
        body: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float,
    ) -> Any:
        if self._sent():
            # By somebody's flush(), which has raised nothing.
            self._waiting.clear()
        message_id = kwargs.get("message_id") or "(without a message_id)"
        try:
            done = self.view.publish_on_session(session, body, args, kwargs, deadline)
        except BaseException as error:
            interruption = self.fail(session, error, message_id)
        else:
            self._given += 1
            if self._sent():
                self._waiting.clear()
            if self._commands:
                self._waiting.append(message_id)
            return done
        # Not above: it would have the error that kombu made of it for its context, whose cause it is.
        raise interruption

    def fail(
        self, session: Session, error: BaseException, message_id: str | None = None
    ) -> BaseException:
        """Raise what to tell of *error*, but an exception of a signal handler's, which is returned.

        :param message_id: of the one that was being published.
        """
        interruption = self._interruption_in(session, error)
        told = interruption or self._told(session, error)
        self.view.note_what_broke(session, told)
        self.failed(told, message_id)
        if interruption is not None:
            return interruption
        if told is error:
            raise error
        raise told from error

    def _interruption_in(self, session: Session, error: BaseException) -> BaseException | None:
        """The exception of a signal handler's that kombu took for the failure of a sending."""
        if not isinstance(error, _BATCHS) or self._commands is self._kept():
            # The second: of an earlier sending, it has been raised already.
            return None
        cause: BaseException | None = error.__cause__
        # redis-py makes its own error of each OSError, a signal handler's too.
        while cause is not None and not is_interruption(session, cause):
            cause = cause.__cause__
        return cause

    def _told(self, session: Session, error: BaseException) -> BaseException:
        if isinstance(error, PublishRefused) or not isinstance(error, Exception):
            return error
        return session.translated(self.view, error)

    def failed(self, error: BaseException, message_id: str | None = None) -> None:
        """Say on *error* which messages it is about, if it has ended a sending.

        :param message_id: of the one that was being published.
        """
        if self._sent():
            self._given += message_id is not None
            self._waiting += () if message_id is None else (message_id,)
            self._note(error, "may be in the broker, or not")

    def tell(self, error: BaseException) -> None:
        if self._sent():
            self._waiting.clear()
        # kombu drops them.
        self._note(error, "were not sent")

    def _note(self, error: BaseException, what: str) -> None:
        words = self._words(what)
        if words:
            error.add_note(words)

    def _words(self, what: str) -> str:
        """What became of those that wait, which do not any more."""
        waiting = self._waiting
        if not waiting:
            return ""
        which = f"the last {len(waiting)}, from message {waiting[0]} on, {what}"
        if len(waiting) < self._given:
            which += "; those before were confirmed"
        waiting.clear()
        return f"pool {self.view.name_of_pool!r}: of the {self._given} messages that the batch was given, {which}"

    def leave(self) -> None:
        # They were published, so they are sent; of a failure only the log can tell.
        view = self.view
        if self.left or view.released:
            return
        self.left = True
        session: Session = view.leased_item.pooled_session
        try:
            with session.sending(monotonic() + view.seconds_to_publish):
                for state in self._open_states():
                    try:
                        if not state.aborted:
                            state.flush()
                    finally:
                        state.close()
            return
        except BaseException as error:
            interruption = self._interruption_in(session, error)
            told = interruption or error
            view.note_what_broke(session, told)
            words = self._words("may be in the broker, or not")
            if (
                interruption is None
                and isinstance(error, Exception)
                and not is_interruption(session, error)
            ):
                if words:
                    logger.warning(
                        "%s: it was given back in the block, and that failed with %r", words, error
                    )
                return
            if words:
                told.add_note(words)
            if interruption is None:
                raise
        raise interruption

    def _open_states(self) -> list[Any]:
        """What kombu keeps of each outermost block that has not ended, in whichever thread."""
        states = [
            batch.state
            for batch in self.open
            if getattr(batch, "is_outermost", False) and batch.state
        ]
        # Where entering the block was interrupted, it is known here alone.
        current = getattr(self.view.__dict__.get("_batch_local"), "current", None)
        return states if current is None or current in states else [*states, current]


class _InBatch(InBatch, BatchSender, Protocol):
    """A lent producer that may be in a batch."""


class BoundedBatch:
    """A batch of kombu's, whose sending keeps to the pool's time as well.

    :param view: the producer that it is of.
    :param batch: kombu's context manager.
    :param session: that of the connection that it sends on.
    :param seconds: for each sending, all its answers included.
    """

    def __init__(self, view: _InBatch, batch: Any, session: Session, seconds: float) -> None:
        self._view = view
        self._batch = batch
        self._session = session
        self._seconds = seconds
        self._sendings = _Sendings(view, batch, session)
        self._outermost = False

    def __enter__(self) -> Self:
        view = self._view
        if not isinstance(view.__dict__.get("_batch_local"), _OfOneLease):
            # Its own from here on, as whatever else a borrower sets.
            view.__dict__["_batch_local"] = _OfOneLease()
        outer = view._batch
        if isinstance(outer, _Sendings):
            self._sendings = outer
        else:
            self._outermost, view._batch = True, self._sendings
        self._sendings.open.append(self._batch)
        self._batch.__enter__()
        return self

    @property
    def results(self) -> dict[str, Outcome]:
        """Empty, because nothing here is confirmed: as :attr:`.Batch.results` is then."""
        return {}

    def flush(self) -> None:
        """Send what has gathered.

        :raises Exception: kombu's, if that failed, with a note on the messages; also outside the block.
        :raises LeaseError: if the producer was released.
        """
        self._view.leased_item  # noqa: B018  # raises after the end
        self._bounded(self._batch.flush)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sendings = self._sendings
        if sendings.left:
            return
        if error is not None:
            sendings.tell(error)
        try:
            self._bounded(lambda: self._batch.__exit__(exc_type, error, traceback))
        finally:
            sendings.open.remove(self._batch)
            if self._outermost:
                self._view._batch = None

    def _bounded(self, send: Callable[[], Any]) -> None:
        try:
            with self._session.sending(monotonic() + self._seconds):
                send()
            return
        except BaseException as error:
            interruption = self._sendings.fail(self._session, error)
        raise interruption
