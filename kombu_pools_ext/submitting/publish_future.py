"""The future of a submitted message, which knows whether anybody has asked for its outcome."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

from ..prepared import Destination
from .unobserved import Failure, failures

__all__ = ["PublishFuture"]


class PublishFuture(Future[None]):
    """The outcome of one submitted message: ``None``, or the error that ``publish`` would have raised.

    A failure is logged if nobody asks for it by :meth:`result`, :meth:`exception` or a callback.

    :param message_id: of the message.
    :param where: its destination and the line that submitted it, for the log.
    """

    def __init__(self, message_id: str, where: Destination) -> None:
        super().__init__()
        #: The message's ``message_id``, by which consumers recognise duplicates.
        self.message_id = message_id
        self._where = where
        # What a log handler submits while it handles a failure is not reported in turn.
        self._observed = failures.is_logging
        self._failure: Failure | None = None
        # Whether it was refused; and whether those who wait know that it was cancelled.
        self._refused = self._is_known = False

    def begin(self) -> bool:
        """Note that the message is going to be written; ``False`` if it was refused or cancelled, or has ended.

        It may be called again.
        """
        # One step with cancel(), with the outcome, and with refuse().
        with self._condition:
            if self._refused or self._is_known or (self.done() and not self.cancelled()):
                return False
            if self.running():
                return True
            self._is_known = self.cancelled()
            return self.set_running_or_notify_cancel()

    def refuse(self) -> bool:
        """Have :meth:`begin` return ``False`` from now on, unless it was ``True``; return whether that is so."""
        with self._condition:
            if self.running():
                return False
            if self.cancelled():
                # Tells those who wait.
                self.begin()
            self._refused = True
            return True

    def succeed(self) -> None:
        """End with success, unless it has ended, or was refused: it is about to get an error then."""
        if self._refused:
            return
        try:
            self.set_result(None)
        except InvalidStateError:
            # The end of the process has come first.
            pass

    def fail(self, error: BaseException) -> None:
        """End with *error*, unless it has ended. The error is logged if nobody asks for it."""
        if not self._observed:
            # A note says whether it was sent.
            notes = [one for one in getattr(error, "__notes__", ()) if self.message_id in one]
            told = "; ".join([f"{type(error).__name__}: {error}".rstrip(": "), *notes])
            self._failure = Failure(
                f"a submitted message was not published, or may not have been: message {self.message_id} "
                f"({self._where}): {told}"
            )
            failures.keep(self._failure)
        try:
            self.set_exception(error)
        except InvalidStateError:
            self._note_observed()
        if self._observed:
            # Closes the race with somebody who asked while the failure was noted.
            self._note_observed()

    def _note_observed(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            failures.forget(failure)

    def result(self, timeout: float | None = None) -> None:
        """Wait for the outcome, and raise the error of a message that was not published, or may not have been.

        :param timeout: seconds; ``None`` means without end.
        :raises TimeoutError: if there is no outcome by then; the message may still be published.
        :raises concurrent.futures.CancelledError: if it was cancelled.
        :raises Exception: what ``publish`` would have raised.
        """
        try:
            return super().result(timeout)
        finally:
            self._note_asked()
            # The traceback of the error has this frame, and would keep the future as long as the error.
            del self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the outcome, and return the error; ``None`` for a message that was published."""
        try:
            return super().exception(timeout)
        finally:
            self._note_asked()

    def add_done_callback(self, fn: Callable[[Future[None]], object]) -> None:
        """Have ``fn(future)`` called once there is an outcome: in the thread that publishes, so it should not wait."""
        self.log_nothing()
        super().add_done_callback(fn)

    def log_nothing(self) -> None:
        """Have no failure of it logged: somebody hears of it in another way."""
        self._observed = True
        self._note_observed()

    def _note_asked(self) -> None:
        if self.done():
            self.log_nothing()

    def __del__(self) -> None:
        failure: Any = self.__dict__.get("_failure")
        if failure is not None:
            failures.drop(failure)
