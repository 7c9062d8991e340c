"""The outcome of a message that one coroutine waits for."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError

from .loop_side import LoopSide

__all__ = ["AwaitedFuture"]

_BEGUN, _CANCELLED, _REFUSED = "begun", "cancelled", "refused"


class AwaitedFuture:
    """What :class:`.PublishFuture` is for ``submit``, in fewer steps: one coroutine looks at it, and there is no lock.

    Each change is one step of the interpreter, so of two threads one comes first.

    :param side: of the event loop in which the coroutine runs.
    """

    __slots__ = ("_claim", "_outcome", "side", "waiter")

    def __init__(self, side: LoopSide) -> None:
        self.side = side
        #: Done when there is an outcome; a future of the event loop.
        self.waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Who came first: the one who writes, or one who wants it not to be written.
        self._claim: dict[str, str] = {}
        self._outcome: dict[str, BaseException | None] = {}

    def begin(self) -> bool:
        """Note that the message is going to be written; ``False`` if it was refused or cancelled, or has ended.

        It may be called again.
        """
        return not self._outcome and self._claim.setdefault("is", _BEGUN) is _BEGUN

    def refuse(self) -> bool:
        """Have :meth:`begin` return ``False`` from now on, unless it was ``True``; return whether that is so."""
        return self._claim.setdefault("is", _REFUSED) is not _BEGUN

    def cancel(self) -> bool:
        """Have the message not sent, unless it was begun or has an outcome; return whether that is so."""
        if self._outcome and not self.cancelled():
            return False
        if self._claim.setdefault("is", _CANCELLED) is not _CANCELLED:
            return False
        self._end(CancelledError())
        return self.cancelled()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return isinstance(self._outcome.get("is"), CancelledError)

    def done(self) -> bool:
        """Whether it has an outcome."""
        return bool(self._outcome)

    def succeed(self) -> None:
        """End with success, unless it has ended, or was refused: it is about to get an error then."""
        if self._claim.get("is") is not _REFUSED:
            self._end(None)

    def fail(self, error: BaseException) -> None:
        """End with *error*, unless it has ended."""
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        self._outcome.setdefault("is", error)
        # Once more does no harm.
        self.side.alarm.wake(self.waiter)

    def exception(self) -> BaseException | None:
        """Return the error; ``None`` if there is none, or no outcome yet."""
        return self._outcome.get("is")

    def result(self) -> None:
        """Raise the error, if there is one."""
        error = self._outcome.get("is")
        if error is not None:
            try:
                raise error
            finally:
                # Else there would be a cycle: the error holds its traceback, the traceback this frame.
                self._outcome["is"] = error = None
                del self
