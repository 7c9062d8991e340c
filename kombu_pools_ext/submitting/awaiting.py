"""Wait in a coroutine for the outcome of a submitted message."""

from __future__ import annotations

import asyncio

from ..errors import PoolTimeout
from .loop_alarm import alarms
from .submission import Submission

__all__ = ["current_task_number", "outcome_in_loop"]

#: Seconds that a road has to end a message whose time is up.
LATER = 1.0


def current_task_number() -> int:
    """Return a number of the current task: what it publishes stays in order.

    :raises RuntimeError: outside of a running event loop.
    """
    return id(asyncio.current_task())


async def outcome_in_loop(submission: Submission) -> None:
    """Wait for the outcome of *submission*; a cancellation says what became of the message.

    :raises PoolTimeout: if it was not begun within the time that its caller has.
    :raises Exception: the error of the future.
    """
    loop = asyncio.get_running_loop()
    future, timeout = submission.future, submission.seconds_left()
    waiter: asyncio.Future[None] = loop.create_future()

    alarm = alarms.of(loop)
    future.add_done_callback(lambda _: alarm.wake(waiter))
    # A message that waits can still be taken back; one that was begun has bounds of its own.
    timer = None if timeout is None else loop.call_later(timeout, _time_is_up, submission, loop)
    try:
        await waiter
    except BaseException as error:
        error.add_note(f"alias {submission.using!r}: {_became(submission)}")
        raise
    finally:
        if timer is not None:
            timer.cancel()
    if future.cancelled():
        submission.forget()
        raise PoolTimeout(
            f"alias {submission.using!r}: message {submission.message_id} was not sent; its turn did not come within "
            f"{submission.acquire_timeout:.3g} s, because others were before it; raise LIMIT or the time-out, or shed "
            "load"
        )
    try:
        future.result()
    finally:
        # Else there would be a cycle: the error holds its traceback, the traceback this frame, the frame the error.
        del future, submission


def _time_is_up(submission: Submission, loop: asyncio.AbstractEventLoop) -> None:
    """Take the message back, if its road does not do so itself in a moment: the road knows why it was not sent."""
    if submission.is_timed:
        loop.call_later(LATER, submission.future.cancel)
    else:
        submission.future.cancel()


def _became(submission: Submission) -> str:
    """What became of the message of a coroutine that is interrupted, which takes it back if it can."""
    future, message = submission.future, f"message {submission.message_id}"
    if future.cancel():
        submission.forget()
        return f"{message} was not sent; it is not in the broker"
    if not future.done():
        return f"{message} may be in the broker, or not: its publish was under way, and goes on"
    error = future.exception()
    if error is None:
        return f"{message} was published before that"
    return f"{message} was not published, or may not have been: {type(error).__name__}: {error}"
