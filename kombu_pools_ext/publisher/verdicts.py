"""The errors of messages that were not sent, or of which nothing is known; each names the pool."""

from __future__ import annotations

import copy

from ..broker.amqp.outcomes import error_of, unknown, unknown_after
from ..errors import PublishError, PublishUnknown
from .lender import Lender
from .outgoing import Outgoing

__all__ = ["Verdicts"]


class Verdicts:
    """Makes the errors of one pool's messages."""

    __slots__ = ("_pool",)

    def __init__(self, pool: Lender) -> None:
        self._pool = pool

    def unknown(self, message: Outgoing, cause: BaseException) -> PublishError:
        """Return what to raise for *message*, which was sent and got no answer because of *cause*."""
        return self._named(unknown(message, cause), cause)

    def as_told(self, message: Outgoing) -> PublishError:
        """Return what to raise for *message*, which the broker has answered."""
        error = error_of(message)
        error.pool = self._pool.name
        if message.unanswered and not isinstance(error, PublishUnknown):
            return self._named(unknown_after(message.message_id, error), error)
        return error

    def refused(self, message: Outgoing, error: BaseException, *, certain: bool) -> BaseException:
        """Return what to raise for *message*, for which alone the broker has closed something with *error*.

        :param certain: whether its earlier tries, if any, were before a closing for the same reason.
        """
        if message.unanswered and not certain:
            return self._named(unknown_after(message.message_id, error), error)
        error.add_note(f"pool {self._pool.name!r}: the broker refused message {message.message_id}")
        return error

    def late(self, message: Outgoing) -> PublishError:
        """Return what to raise for *message*, whose confirm did not come in time."""
        return self.unknown(message, TimeoutError("the confirm did not come in time"))

    def copy_of(self, error: Exception) -> Exception:
        """Return a copy of *error* for one of several messages: whoever raises it adds to its traceback."""
        own = copy.copy(error)
        own.__cause__ = error.__cause__
        return own

    def not_sent(self, message: Outgoing, waited: float, *, is_lent: bool) -> Exception:
        """Return what to raise for *message*, which was not sent within *waited* seconds.

        :param is_lent: whether there was a connection, and the broker took messages.
        """
        message_id, name = message.message_id, self._pool.name
        if not is_lent:
            error = self._pool.why_not_lent(waited)
            error.add_note(f"pool {name!r}: message {message_id} was not sent")
            return error
        return self._named(
            PublishError(
                f"pool {name!r}: message {message_id} was not sent within {waited:.3g} s: others were before it; "
                "raise the time-out, or publish less at a time",
                message_id,
            ),
            TimeoutError("not sent in time"),
        )

    def _named(self, error: PublishError, cause: BaseException) -> PublishError:
        error.pool, error.__cause__ = self._pool.name, cause
        return error
