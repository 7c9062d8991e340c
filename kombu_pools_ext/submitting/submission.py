"""One submitted message on its way, and what takes it: a road."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Protocol

from ..errors import PoolTimeout
from ..prepared import PreparedMessage
from .awaited_future import AwaitedFuture
from .draft import Draft
from .publish_future import PublishFuture

if TYPE_CHECKING:
    from ..aliases import Pools
    from ..publisher import Outgoing, SharedRoad

__all__ = ["Road", "Submission"]

#: Seconds that a road has to end a message whose time is up.
LATER = 1.0


class Road(Protocol):
    """What takes submitted messages to the broker. ``Pools.road_of`` chooses one for an alias."""

    def start(self, submission: Submission) -> None:
        """Take *submission*, and return without waiting for the broker.

        The road calls ``submission.begin()`` before it writes the first byte, and drops a submission for which that is
        ``False``. After ``True`` it calls ``submission.succeed()`` or ``submission.fail(error)``, from any thread.
        Submissions with the same ``lane`` reach the broker in the order in which they were started.

        :raises PoolFull: if it has no room within ``submission.seconds_left()``, which is not asked for if
            ``submission.has_room``. It has not taken the message then.
        :raises EncodeError: if the body cannot be serialized; likewise.
        """
        ...

    def keep_order(self, submission: Submission) -> None:
        """Have what comes later in its lane stay behind *submission*, for which its task waits no longer."""
        ...

    def await_empty(self, deadline: float) -> bool:
        """Wait until all that was started has an outcome; whether that is so at *deadline* (of the monotonic clock)."""
        ...


class Submission:
    """A message and its future.

    ======== ==================================================================================
    WAITING  it was taken, and not begun; ``cancel()`` of the future works
    BEGUN    a road writes it, and waits for the answer; ``begin()`` has returned ``True``
    ENDED    the future has its outcome: ``succeed()`` or ``fail()`` was called, or ``cancel()``
    ======== ==================================================================================

    :param pools: the pools that publish it.
    :param road: what takes it.
    :param lane: what the order is kept within: the thread, or task, and the exchange.
    :param acquire_timeout: seconds to wait for a producer; ``None`` means without end.
    :param awaited: the outcome that a coroutine waits for, if one does: its time counts from now on, and the message
        needs no room in a queue.
    """

    __slots__ = (
        *("_context", "_deadline", "_draft", "_ended", "_pools"),
        *("acquire_timeout", "awaited", "counted", "future", "has_room", "is_timed", "lane"),
        *("message_id", "needs_lease", "number", "road", "using"),
    )

    def __init__(
        self,
        pools: Pools,
        draft: Draft,
        road: Road,
        lane: Hashable,
        acquire_timeout: float | None,
        awaited: AwaitedFuture | None,
    ) -> None:
        self._pools = pools
        self._draft: Draft | None = draft
        self.acquire_timeout = acquire_timeout
        self._deadline: float | None = None
        if awaited is not None and acquire_timeout is not None:
            self._deadline = time.monotonic() + acquire_timeout
        # As asyncio.to_thread and asgiref do it: a tracer's span, or Flask's context, is that of the caller.
        self._context: Context | None = copy_context()
        # Called once it has its outcome.
        self._ended: Callable[[], object] | None = None
        self.lane = lane
        self.awaited = awaited
        #: Whether it has its room in a queue, or needs none.
        self.has_room = awaited is not None
        #: Whether a road counts it among those of its lane that are on their way.
        self.counted = False
        self.road = road
        #: Whether it turned out to need a lease.
        self.needs_lease = False
        #: Whether its road ends it when its time is up, with an error that says why.
        self.is_timed = False
        #: Its place among those that were started.
        self.number = 0
        #: The alias.
        self.using = draft.destination.using
        self.message_id = draft.message_id
        self.future: AwaitedFuture | PublishFuture = awaited or PublishFuture(
            draft.message_id, draft.destination
        )

    @property
    def message(self) -> PreparedMessage:
        """The message for a lease, serialized now if it was not. Only for a submission that has no outcome.

        :raises EncodeError: if the body cannot be serialized.
        """
        return self._undone.prepared()

    def serialize(self) -> None:
        """Make the message for a lease now, unless it is made, or has its outcome; as :attr:`message`."""
        draft = self._draft
        if draft is not None:
            draft.prepared()

    def outgoing(self, road: SharedRoad) -> Outgoing | None:
        """Return the message for the shared connection; see :meth:`.Draft.outgoing`."""
        return self._undone.outgoing(road, self.seconds_left())

    @property
    def _undone(self) -> Draft:
        if self._draft is None:
            raise RuntimeError(f"message {self.message_id} was cancelled")
        return self._draft

    def begin(self) -> bool:
        """Note that the message is going to be written; ``False`` if it was cancelled, or has its outcome.

        The second time, for a message that changes its road, it is ``True``.
        """
        begun = self.future.begin()
        if not begun:
            self.forget()
        return begun

    def time_is_up(self) -> float | None:
        """Take it back, because its time is up; return the seconds until the next try, if its road ends it before.

        The road knows why it was not sent.
        """
        if self.is_timed:
            self.is_timed = False
            return LATER
        self.future.cancel()
        return None

    def why_not_begun(self) -> Exception:
        """Return the error of a message whose turn did not come: that of its pool, or that others were before it."""
        seconds = self.acquire_timeout or 0.0
        error = self._pools.producers[self.using].why_not_lent(seconds)
        if type(error) is PoolTimeout:
            return PoolTimeout(
                f"alias {self.using!r}: message {self.message_id} was not sent; its turn did not come within "
                f"{seconds:.3g} s, because others were before it; raise LIMIT or the time-out, or shed load"
            )
        error.add_note(f"alias {self.using!r}: message {self.message_id} was not sent")
        return error

    def give_up(self) -> None:
        """Cancel it: its caller has an error instead of the future, so nobody else needs to hear of it."""
        self.future.cancel()
        if isinstance(self.future, PublishFuture):
            self.future.log_nothing()

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
        self._draft = self._context = None
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()

    @property
    def is_ended(self) -> bool:
        """Whether it has its outcome, or was cancelled."""
        return self._draft is None

    def when_ended(self, callback: Callable[[], object]) -> None:
        """Have *callback* called when it has its outcome, or is found cancelled."""
        self._ended = callback
        if self._draft is None:
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
