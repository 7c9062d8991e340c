"""kombu's own batch: bounded in time, an error of it says which messages it is about, and it ends with its lease."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import local
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import kombu.exceptions

from ..errors import PublishRefused
from .batch import BatchState
from .soundness import is_interruption

if TYPE_CHECKING:
    from .producer_views import ProducerView

__all__ = ["BoundedBatch"]

logger = logging.getLogger("kombu_pools_ext")

#: What kombu's batch raises for whatever a sending has ended with.
_BATCHS: Any = getattr(kombu.exceptions, "BatchPublishError", ())


class _OfOneLease(local):
    """Where kombu keeps the batch that a thread is in; the pooled producer's would go on to the next borrower."""


class _Sendings(BatchState):
    """Which messages wait to be sent together, in the outermost batch and those within it.

    :param batch: kombu's context manager.
    :param item: the connection, which is not Redis's if it has no bounds: each message is sent at once then.
    """

    def __init__(self, view: ProducerView, batch: Any, item: Any) -> None:
        super().__init__(view)
        self._batch = batch
        self._sends_together = item.bounds is not None
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
        self, item: Any, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float
    ) -> Any:
        if self._sent():
            # By somebody's flush(), which has raised nothing.
            self._waiting.clear()
        message_id = kwargs.get("message_id") or "(without a message_id)"
        try:
            done = self.view._publish_once(item, body, args, kwargs, deadline)
        except BaseException as error:
            interruption = self.fail(item, error, message_id)
        else:
            self._given += 1
            if self._sent():
                self._waiting.clear()
            if self._commands:
                self._waiting.append(message_id)
            return done
        # Not above: it would have the error that kombu made of it for its context, whose cause it is.
        raise interruption

    def fail(self, item: Any, error: BaseException, message_id: str | None = None) -> BaseException:
        """Raise what to tell of *error*, but an exception of a signal handler's, which is returned.

        :param message_id: of the one that was being published.
        """
        interruption = self._interruption_in(item, error)
        told = interruption or self._told(error)
        self.view._note(item, told)
        self.failed(told, message_id)
        if interruption is not None:
            return interruption
        if told is error:
            raise error
        raise told from error

    def _interruption_in(self, item: Any, error: BaseException) -> BaseException | None:
        """The exception of a signal handler's that kombu took for the failure of a sending."""
        if not isinstance(error, _BATCHS) or self._commands is self._kept():
            # The second: of an earlier sending, it has been raised already.
            return None
        cause: BaseException | None = error.__cause__
        # redis-py makes its own of an OSError, whoever raised that.
        while cause is not None and not is_interruption(item, cause):
            cause = cause.__cause__
        return cause

    def _told(self, error: BaseException) -> BaseException:
        if isinstance(error, PublishRefused) or not isinstance(error, Exception):
            return error
        return self.view.told_of_batch(error)

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
        return f"pool {self.view._pool.name!r}: of the {self._given} messages that the batch was given, {which}"

    def leave(self) -> None:
        # They were published, so they are sent; of a failure only the log can tell.
        view = self.view
        if self.left or view._lease.ended:
            return
        self.left = True
        item: Any = view._lease.item
        try:
            with sending(item, view._pool.confirm_timeout):
                for state in self._open_states():
                    try:
                        if not state.aborted:
                            state.flush()
                    finally:
                        state.close()
            return
        except BaseException as error:
            interruption = self._interruption_in(item, error)
            told = interruption or error
            view._note(item, told)
            words = self._words("may be in the broker, or not")
            if (
                interruption is None
                and isinstance(error, Exception)
                and not is_interruption(item, error)
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


def sending(item: Any, seconds: float) -> AbstractContextManager[None]:
    """Within, a sending on *item* has *seconds*, all its answers included."""
    deadline = monotonic() + seconds
    within = item.within if item.bounds is None else item.bounds.publishing
    return within(deadline)  # type: ignore[no-any-return]  # a connection of ours


class BoundedBatch:
    """A batch of kombu's, whose sending keeps to the pool's time as well.

    :param view: the producer that it is of.
    :param batch: kombu's context manager.
    :param item: the connection that it sends on.
    :param seconds: for each sending, all its answers included.
    """

    def __init__(self, view: ProducerView, batch: Any, item: Any, seconds: float) -> None:
        self._view = view
        self._batch = batch
        self._item = item
        self._seconds = seconds
        self._sendings = _Sendings(view, batch, item)
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

    def flush(self) -> None:
        """Send what has gathered.

        :raises Exception: kombu's, if that failed, with a note on the messages; also outside the block.
        :raises LeaseError: if the producer was released.
        """
        self._view._lease.item  # noqa: B018  # says so
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
            with sending(self._item, self._seconds):
                send()
            return
        except BaseException as error:
            interruption = self._sendings.fail(self._item, error)
        raise interruption
