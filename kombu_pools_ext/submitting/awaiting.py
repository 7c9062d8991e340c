"""Wait in a coroutine for the outcome of a submitted message."""

from __future__ import annotations

import asyncio

from .awaited_future import AwaitedFuture
from .loop_side import loop_sides
from .submission import Submission

__all__ = ["awaited_future", "current_task_number", "outcome_in_loop"]


def current_task_number() -> int:
    """Return a number of the current task: what it publishes stays in order.

    :raises RuntimeError: outside of a running event loop.
    """
    return id(asyncio.current_task())


def awaited_future() -> AwaitedFuture:
    """Return the outcome that the current task is going to wait for.

    :raises RuntimeError: outside of a running event loop.
    """
    return AwaitedFuture(loop_sides.of(asyncio.get_running_loop()))


async def outcome_in_loop(submission: Submission, future: AwaitedFuture) -> None:
    """Wait for the outcome of *submission*; a cancellation says what became of the message.

    :param future: that of the submission.
    :raises Exception: the error of the future; or, if it was not begun in time, why not.
    """
    # A message that waits can still be taken back; one that was begun has bounds of its own.
    timeout, deadlines = submission.seconds_left(), future.side.deadlines
    if timeout is not None:
        deadlines.add(submission, timeout)
    try:
        await future.waiter
    except BaseException as error:
        error.add_note(f"alias {submission.using!r}: {_became(submission)}")
        raise
    finally:
        deadlines.discard(submission)
    if future.cancelled():
        submission.forget()
        raise submission.why_not_begun()
    try:
        future.result()
    finally:
        # Else there would be a cycle: the error holds its traceback, the traceback this frame, the frame the error.
        del future, submission


def _became(submission: Submission) -> str:
    """What became of the message of a coroutine that is interrupted, which takes it back if it can."""
    future, message = submission.future, f"message {submission.message_id}"
    if future.cancel():
        submission.forget()
        return f"{message} was not sent; it is not in the broker"
    if not future.done():
        submission.road.keep_order(submission)
        return f"{message} may be in the broker, or not: its publish was under way, and goes on"
    error = future.exception()
    if error is None:
        return f"{message} was published before that"
    return f"{message} was not published, or may not have been: {type(error).__name__}: {error}"
