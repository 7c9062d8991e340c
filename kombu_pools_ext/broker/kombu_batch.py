"""kombu's own batch, on Redis: bounded in time, and an error of it says which messages it is about."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..errors import PublishRefused
from .batch import BatchState

if TYPE_CHECKING:
    from .producer_views import ProducerView

__all__ = ["BoundedBatch"]


class _Sendings(BatchState):
    """Which messages wait to be sent together, in the outermost batch and those within it.

    :param batch: kombu's context manager.
    """

    def __init__(self, view: ProducerView, batch: Any) -> None:
        super().__init__(view)
        self._batch = batch
        self._given = 0
        #: The ids of those that wait.
        self._waiting: list[str] = []
        #: What redis-py keeps their commands in: it takes another list after each sending, however that has ended.
        self._commands: Any = None

    def _kept(self) -> Any:
        session = getattr(self._batch.state, "session", None)
        return None if session is None else session.pipeline.command_stack

    def _sent(self) -> bool:
        """Whether there was a sending since the last look."""
        before, self._commands = self._commands, self._kept()
        return self._commands is not before

    def takes(self) -> bool:
        # What kombu sends at once is not of a batch.
        return not getattr(self._batch.state, "immediate", False)

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
            told = self.told(error)
            self.failed(told, message_id)
            if told is error:
                raise
            raise told from error
        self._given += 1
        if self._sent():
            self._waiting.clear()
        if self._commands:
            self._waiting.append(message_id)
        return done

    def told(self, error: BaseException) -> BaseException:
        """What to raise for *error*."""
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
        waiting = self._waiting
        if waiting:
            which = f"the last {len(waiting)}, from message {waiting[0]} on, {what}"
            if len(waiting) < self._given:
                which += "; those before were confirmed"
            error.add_note(
                f"pool {self.view._pool.name!r}: of the {self._given} messages that the batch was given, {which}"
            )
            waiting.clear()


class BoundedBatch:
    """A batch of kombu's, whose sending keeps to the pool's time as well.

    :param view: the producer that it is of.
    :param batch: kombu's context manager.
    :param item: the connection that it sends on, which has bounds.
    :param seconds: for each sending, all its answers included.
    """

    def __init__(self, view: ProducerView, batch: Any, item: Any, seconds: float) -> None:
        self._view = view
        self._batch = batch
        self._item = item
        self._seconds = seconds
        self._sendings = _Sendings(view, batch)
        self._outermost = False

    def __enter__(self) -> Self:
        self._batch.__enter__()
        outer = self._view._batch
        if isinstance(outer, _Sendings):
            self._sendings = outer
        else:
            self._outermost, self._view._batch = True, self._sendings
        return self

    def flush(self) -> None:
        """Send what has gathered.

        :raises Exception: kombu's, if that failed, with a note on the messages; also outside the block.
        """
        self._bounded(self._batch.flush)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._outermost:
            self._view._batch = None
        if error is not None:
            self._sendings.tell(error)
        self._bounded(lambda: self._batch.__exit__(exc_type, error, traceback))

    def _bounded(self, send: Callable[[], Any]) -> None:
        try:
            with self._item.within(monotonic() + self._seconds):
                send()
        except BaseException as error:
            told = self._sendings.told(error)
            self._sendings.failed(told)
            if told is error:
                raise
            raise told from error
