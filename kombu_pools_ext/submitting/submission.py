"""One submitted message on its way, and what takes it: a road."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Protocol

from ..prepared import PreparedMessage
from .publish_future import PublishFuture

if TYPE_CHECKING:
    from ..aliases import Pools

__all__ = ["Road", "Submission"]


class Road(Protocol):
    """What takes submitted messages to the broker. ``Pools.road_of`` chooses one for an alias."""

    def start(self, submission: Submission) -> None:
        """Take *submission*, and return without waiting for the broker.

        The road calls ``submission.begin()`` before it writes the first byte, and drops a submission for which that is
        ``False``. After ``True`` it calls ``submission.succeed()`` or ``submission.fail(error)``, from any thread.
        Submissions with the same ``lane`` reach the broker in the order in which they were started.

        :raises PoolFull: if it has no room within ``submission.seconds_left()``, which is not asked for if
            ``submission.caller_waits``. It has not taken the message then.
        """
        ...

    def await_empty(self, deadline: float) -> bool:
        """Wait until all that was started has an outcome; whether that is so at *deadline* (of the monotonic clock)."""
        ...


class Submission:
    """A prepared message and its future.

    ======== ==================================================================================
    WAITING  it was taken, and not begun; ``cancel()`` of the future works
    BEGUN    a road writes it, and waits for the answer; ``begin()`` has returned ``True``
    ENDED    the future has its outcome: ``succeed()`` or ``fail()`` was called, or ``cancel()``
    ======== ==================================================================================

    :param pools: the pools that publish it.
    :param lane: what the order is kept within: the thread, or task, and the exchange.
    :param acquire_timeout: seconds to wait for a producer; ``None`` means without end.
    :param caller_waits: whether the caller waits for the outcome, so that its time counts from now on, and the message
        needs no room in a queue.
    """

    __slots__ = (
        *("_context", "_deadline", "_ended", "_message", "_pools", "acquire_timeout"),
        *(
            "caller_waits",
            "future",
            "has_room",
            "lane",
            "message_id",
            "needs_lease",
            "is_timed",
            "number",
            "using",
        ),
    )

    def __init__(
        self,
        pools: Pools,
        message: PreparedMessage,
        lane: Hashable,
        acquire_timeout: float | None,
        *,
        caller_waits: bool,
    ) -> None:
        self._pools = pools
        self._message: PreparedMessage | None = message
        self.acquire_timeout = acquire_timeout
        self._deadline: float | None = None
        if caller_waits and acquire_timeout is not None:
            self._deadline = time.monotonic() + acquire_timeout
        # As asyncio.to_thread and asgiref do it: a tracer's span, or Flask's context, is that of the caller.
        self._context: Context | None = copy_context()
        # Called once it has its outcome.
        self._ended: Callable[[], object] | None = None
        self.lane = lane
        self.caller_waits = caller_waits
        #: Whether a road has room for it already, and hands it to another one.
        self.has_room = False
        #: Whether it turned out to need a lease.
        self.needs_lease = False
        #: Whether its road ends it when its time is up, with an error that says why.
        self.is_timed = False
        #: Its place among those that were started.
        self.number = 0
        #: The alias.
        self.using = message.using
        self.message_id = message.message_id
        self.future = PublishFuture(message.message_id, message.where)

    @property
    def message(self) -> PreparedMessage:
        """The message. Only for a submission that was begun."""
        if self._message is None:
            raise RuntimeError(f"message {self.message_id} was cancelled")
        return self._message

    def begin(self) -> bool:
        """Note that the message is going to be written; ``False`` if it was cancelled, or has its outcome.

        The second time, for a message that changes its road, it is ``True``.
        """
        begun = self.future.begin()
        if not begun:
            self.forget()
        return begun

    def refuse(self) -> bool:
        """Have :meth:`begin` return ``False`` from now on; return whether it was not begun yet."""
        return self.future.refuse()

    def succeed(self) -> None:
        """End it: the message was published."""
        self.forget()
        self.future.succeed()

    def fail(self, error: BaseException) -> None:
        """End it with *error*."""
        self.forget()
        self.future.fail(error)

    def forget(self) -> None:
        """Let go of body and context: nobody needs them any more."""
        self._message = self._context = None
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    @property
    def is_ended(self) -> bool:
        """Whether it has its outcome, or was cancelled."""
        return self._message is None

    def when_ended(self, callback: Callable[[], object]) -> None:
        """Have *callback* called when it has its outcome, or is found cancelled."""
        self._ended = callback
        if self._message is None:
            self.forget()

    def publish(self) -> None:
        """Publish it over a lease, in this thread, unless it was cancelled. The future has the outcome."""
        # Before that, because a cancelled submission forgets it.
        context = self._context
        if context is None or not self.begin():
            return
        try:
            context.run(self._pools.publish_prepared, self.message, self.seconds_left())
        except BaseException as error:
            try:
                self.fail(error)
                if not isinstance(error, Exception):
                    raise
            finally:
                # The traceback has this frame, and would keep the future for as long as the future keeps the error.
                del self, context
        else:
            self.succeed()

    def seconds_left(self) -> float | None:
        """Seconds for which it may wait: for room, or for a producer; ``None`` means without end."""
        if self._deadline is None:
            return self.acquire_timeout
        return max(0.0, self._deadline - time.monotonic())
