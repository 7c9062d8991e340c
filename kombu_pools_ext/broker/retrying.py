"""A publish that failed: was it sent, may it be tried again, and where?

A retry repairs nothing in place. A connection that broke goes back to its pool, which closes it, and the same producer
goes on with another one, under the same bound on the pool, with the same ``message_id``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

from amqp import spec
from amqp.exceptions import ChannelError, NotFound
from kombu.exceptions import OperationalError

from ..errors import PublishError, PublishNacked, PublishReturned, PublishUnknown
from ..settings import RetryPolicy
from .arguments import check_retry_policy
from .own_errors import raised_by_library
from .redis_answers import is_answer, refusal
from .session import Session
from .soundness import is_connection_error, is_interruption

__all__ = ["LONGEST_TRY", "Message", "carry_on", "says_it_is_gone", "seconds_for_one_try"]

logger = logging.getLogger("kombu_pools_ext")

#: Seconds for one try, at most, whatever the caller says: sockets take no more than 24 days.
LONGEST_TRY = 86400.0
#: Seconds that kombu pauses for between two tries, unless its ``retry_policy`` says otherwise.
KOMBUS_INTERVAL = 1.0


def seconds_for_one_try(usual: float, kwargs: Mapping[str, Any]) -> float:
    """Seconds for one try: the call's ``confirm_timeout`` or else the *usual* ones, within the call's ``timeout``."""
    seconds, total = kwargs.get("confirm_timeout"), kwargs.get("timeout")
    seconds = usual if seconds is None else min(seconds, LONGEST_TRY)
    return seconds if total is None else min(seconds, total)


class _Plan:
    """When to try again, by the pool's own settings: each try waits for the end of an outage."""

    #: Whether a try does not wait for a broker that is down.
    unless_down = False
    #: Whether the plan says itself when the tries end, so that they need no bound in seconds.
    ends = False

    def __init__(self, pools: RetryPolicy | None, retry: Any, given: Mapping[str, Any]) -> None:
        self.wanted = pools is not None if retry is None else bool(retry)
        own = pools if pools is not None else RetryPolicy(max_retries=0)
        #: Tries after the first; ``None`` is as many as the time allows.
        self.most: float | None = 0
        if self.wanted:
            self.most = None if pools is None else own.max_retries
        self.start, self.step, self.longest = (
            own.interval_start,
            own.interval_step,
            own.interval_max,
        )
        self.tries = 0
        #: How often the broker has refused the message, and whether that is a reason to try again.
        self.nacks = 0
        self.heeds_nacks = self.wanted and own.nacked and self.most != 0
        self.errback = given.get("errback")
        self.on_revive = given.get("on_revive")
        errors = given.get("retry_errors") or ()
        self.more_errors = errors if isinstance(errors, type) else tuple(errors)

    def next_pause(self, *, connecting: bool) -> float | None:
        """Count a try that failed.

        :param connecting: whether it got no connection.
        :returns: seconds before the next one; ``None`` if there is none.
        """
        if self.most is not None and self.tries >= self.most:
            return None
        self.tries += 1
        return self._pause(self.tries - 1)

    def pause_after_nack(self) -> float | None:
        """Count a nack, which is no failure of a connection: the time alone bounds how many there are.

        :returns: seconds before the next try; ``None`` if there is none.
        """
        if not self.heeds_nacks:
            return None
        self.nacks += 1
        return self._pause(self.nacks - 1)

    def _pause(self, number: int) -> float:
        return float(min(self.start + number * self.step, self.longest))


class _GivenPlan(_Plan):
    """When to try again, by a ``retry_policy`` of kombu's that was given with the message: counted as kombu does.

    A publish that broke is tried again at once, on a new connection; there are pauses between attempts to connect.
    """

    unless_down = True

    def __init__(self, pools: RetryPolicy | None, retry: Any, given: Mapping[str, Any]) -> None:
        super().__init__(pools, retry, given)
        if self.wanted:
            self.most = given.get("max_retries")
            self.ends = "max_retries" in given
        # kombu knows no nacks.
        self.heeds_nacks = False
        self.start, self.step, self.longest = (
            KOMBUS_INTERVAL if given.get(part) is None else given[part]
            for part in ("interval_start", "interval_step", "interval_max")
        )
        #: Attempts to connect that failed since the last publish did, and how many may.
        self._attempts = 0
        # The first try may have been one to connect.
        self._most_attempts = self.most

    def next_pause(self, *, connecting: bool) -> float | None:
        if not connecting:
            if self.most is not None and self.tries >= self.most:
                return None
            self._most_attempts = None if self.most is None else max(self.most - self.tries, 1)
            self._attempts = 0
            self.tries += 1
            return 0.0
        if self._most_attempts is not None and self._attempts >= self._most_attempts:
            return None
        self._attempts += 1
        return self._pause(self._attempts - 1)


class Message(Protocol):
    """A message whose publish failed, as its retry sees it."""

    #: What it is published with: its declarations are bound to the present connection.
    kwargs: dict[str, Any]

    @property
    def session(self) -> Session | None:
        """What it would be published on now; ``None`` while there is no connection."""
        ...

    @property
    def pool_name(self) -> str:
        """What errors call the pool."""
        ...

    @property
    def policy(self) -> RetryPolicy | None:
        """When the pool tries again."""
        ...

    @property
    def message_id(self) -> str:
        """The one that each try has."""
        ...

    @property
    def has_one_queue(self) -> bool:
        """Whether it goes to one queue, by the default exchange."""
        ...

    @property
    def is_buffered(self) -> bool:
        """Whether it is one of a batch of kombu's, which is bound to its channel."""
        ...

    def send(self, deadline: float) -> Any:
        """Publish it on the connection that there is, by *deadline*."""
        ...

    def give_up(self) -> None:
        """Give its connection back, to be closed."""
        ...

    def reconnect(self, timeout: float, *, unless_down: bool = False) -> None:
        """Take another connection within *timeout* seconds.

        :param unless_down: do not wait for a broker that is down.
        :raises OperationalError: if there is none.
        """
        ...

    def declare_anew(self) -> None:
        """Have what is in its ``declare`` declared again."""
        ...

    def channel(self, deadline: float) -> Any:
        """Return the channel that it would be published on, which is opened by *deadline* if it is not open."""
        ...


def carry_on(
    message: Message,
    session: Session,
    error: BaseException,
    *,
    retry: Any,
    policy: Mapping[str, Any] | None,
    began: float,
    seconds: float,
) -> Any:
    """Try again to publish *message*, or raise the error that says what became of it.

    :param session: that of the first try.
    :param error: what the first try ended with.
    :param retry: kombu's.
    :param policy: kombu's ``retry_policy``.
    :param began: when the first try began, in seconds of ``time.monotonic``.
    :param seconds: for one try.
    """
    try:
        check_retry_policy("retry_policy", policy or {})
        kind = _GivenPlan if policy else _Plan
        plan = kind(message.policy, retry, policy or {})
    except (TypeError, ValueError) as wrong:
        # What became of the message is more than that it cannot be tried again.
        error.add_note(f"pool {message.pool_name!r}: it was not tried again: {wrong}")
        plan = _Plan(None, False, {})
    if message.is_buffered:
        plan.most = 0
    deadline = began + _seconds_in_all(plan, seconds, message.kwargs)
    try:
        return _Tries(message, message.session or session, plan, deadline, seconds).go_on(error)
    finally:
        # Else there would be a cycle: the error holds its traceback, the traceback this frame, the frame the error.
        del error


class _Tries:
    """The tries of one message after the first.

    :param first: the session of the first try.
    :param deadline: of all tries together, in seconds of ``time.monotonic``.
    :param seconds: for one try.
    """

    def __init__(
        self, message: Message, first: Session, plan: _Plan, deadline: float, seconds: float
    ) -> None:
        self._message = message
        self._first = first
        self._plan = plan
        self._deadline = deadline
        self._seconds = seconds
        #: Whether a try may have brought the message to the broker.
        self._maybe_there = False
        #: The broker's last refusal.
        self._nack: PublishNacked | None = None
        #: Whether it was tried again because something in its ``declare`` was not there; and whether that is the only
        #: reason for the present try.
        self._declared_anew = self._only_declares = False

    def go_on(self, error: BaseException) -> Any:
        """Try again after *error*, until a try succeeds or there is no reason for another one."""
        try:
            while True:
                session = self._message.session
                lost, here = session is None, session or self._first
                pause = self._pause_after(error, here, lost=lost)
                if pause is None:
                    break
                try:
                    return self._try_again(error, pause)
                except BaseException as newer:
                    error = newer
            raise self._last_word(error, here, lost=lost)
        finally:
            # As above.
            self._nack = None
            del error

    def _pause_after(self, error: BaseException, here: Session, *, lost: bool) -> float | None:
        """Seconds before the next try; ``None`` if there is none.

        :param here: what *error* was raised on.
        :param lost: whether it was raised because there was no connection.
        """
        plan, self._only_declares = self._plan, False
        if isinstance(error, PublishNacked):
            self._nack = error
            return self._if_in_time(plan.pause_after_nack())
        own = _is_of_the_pool(error) if lost else is_connection_error(here, error)
        if not (own or isinstance(error, plan.more_errors)):
            # Or somebody deleted a queue or exchange that was declared on this connection: the message is not there.
            if self._declared_anew or not _lacks_what_was_declared(error, self._message.kwargs):
                return None
            self._declared_anew = self._only_declares = True
        # An older py-amqp calls a write that was cut short a channel's error.
        torn = own and not lost and here.is_torn
        sent = isinstance(error, PublishUnknown) or (
            own
            and not self._first.certain
            and not lost
            and not is_answer(error)
            and here.may_have_left
        )
        self._maybe_there = self._maybe_there or sent
        pause: float | None = 0.0
        if not self._only_declares:
            # Counted by the plan, so what will not be tried again is not asked for.
            again_helps = torn or _helps_to_try_again(plan, error, self._first.connection)
            pause = plan.next_pause(connecting=lost) if again_helps else None
        return self._if_in_time(pause)

    def _if_in_time(self, pause: float | None) -> float | None:
        """*pause*, unless there is no time left after it."""
        if pause is None or time.monotonic() + pause >= self._deadline:
            return None
        return pause

    def _try_again(self, error: BaseException, pause: float) -> Any:
        message, plan, deadline = self._message, self._plan, self._deadline
        # Neither is about the connection. ChannelPublisher, which has heard of a return, has forgotten what was
        # declared there; after a nack it opens the channel anew.
        stays = isinstance(error, PublishNacked) or (
            self._only_declares and isinstance(error, PublishReturned)
        )
        if not stays:
            message.give_up()
            # Only now: while it holds a connection, a log handler that publishes may wait for that.
            logger.info(
                "pool %r: message %s is tried again on another connection, after %s: %s",
                *(message.pool_name, message.message_id, type(error).__name__, error),
            )
            if plan.errback is not None:
                plan.errback(error, pause)
        if pause:
            time.sleep(pause)
        if stays:
            return message.send(min(time.monotonic() + self._seconds, deadline))
        left = deadline - time.monotonic()
        if plan.unless_down:
            message.reconnect(min(self._seconds, left), unless_down=True)
        else:
            message.reconnect(min(left, LONGEST_TRY))
        until = min(time.monotonic() + self._seconds, deadline)
        if self._declared_anew:
            message.declare_anew()
        if plan.on_revive is not None:
            plan.on_revive(message.channel(until))
        return message.send(until)

    def _last_word(self, error: BaseException, session: Session, *, lost: bool) -> BaseException:
        """*error*, or one that says that the message may be there.

        :param session: what *error* was raised on, or the session of the first try if no other connection could be had.
        :param lost: whether it was raised because there was no connection.
        """
        message, maybe_there, wanted = self._message, self._maybe_there, self._plan.wanted
        message_id, name = message.message_id, message.pool_name
        own = lost or is_connection_error(session, error)
        if _says_nothing_of_it(session, error, lost=lost):
            may_be = maybe_there or (not lost and session.may_have_left)
            _note_interruption(error, name, message_id, maybe_there=may_be)
            return error
        if maybe_there and (session.certain or wanted) and not isinstance(error, PublishUnknown):
            unknown = PublishUnknown(
                f"message {message_id} may be in the broker, or not: a try that was sent had no answer, and the last "
                f"one failed ({type(error).__name__}: {error}); a consumer knows a copy by its message_id",
                message_id,
            ).like(error)
            unknown.pool, unknown.__cause__ = name, error
            return unknown
        if self._nack is not None and not isinstance(error, PublishError):
            # What failed since then was not sent. But of several queues some may have it from before.
            self._nack.__cause__, error = error, self._nack
        if isinstance(error, PublishError):
            error.pool = name
        elif is_answer(error) and not lost:
            return refusal(error, name, message_id, one_queue=message.has_one_queue)
        elif session.has_refused(error):
            error.add_note(
                f"pool {name!r}: the broker refused message {message_id}; it is not in the broker"
            )
        elif (session.certain and (own or isinstance(error, ChannelError))) or (
            own and not lost and not session.may_have_left
        ):
            error.add_note(
                f"pool {name!r}: message {message_id} was not sent; it is not in the broker"
            )
        if wanted and not lost and not isinstance(error, OperationalError):
            return _as_kombu_ends_retries(session.connection, error, name, message_id)
        return error


def _is_of_the_pool(error: BaseException) -> bool:
    """Whether *error* says that no other connection could be had for now."""
    return isinstance(error, OperationalError)


def _seconds_in_all(plan: _Plan, seconds: float, kwargs: Mapping[str, Any]) -> float:
    """Seconds for all tries; without end if the caller has said how many there are, and gave no ``timeout``."""
    total: float | None = kwargs.get("timeout")
    if total is not None:
        return total
    return float("inf") if plan.ends else seconds


def _helps_to_try_again(plan: _Plan, error: BaseException, connection: Any) -> bool:
    """Whether *error* is one that another connection like *connection* may not meet."""
    recoverable = (*connection.recoverable_connection_errors, OperationalError)
    cause = error.__cause__ if isinstance(error, PublishUnknown) else error
    return isinstance(error, plan.more_errors) or isinstance(cause, recoverable)


def _lacks_what_was_declared(error: BaseException, kwargs: dict[str, Any]) -> bool:
    """Whether the broker has no queue or exchange for a message that came with its declarations."""
    return bool(kwargs.get("declare")) and says_it_is_gone(error)


def says_it_is_gone(error: BaseException) -> bool:
    """Whether the broker has no queue or exchange for a message, and does not have the message either."""
    if isinstance(error, PublishReturned):
        return True
    return isinstance(error, NotFound) and getattr(error, "method_sig", None) == spec.Basic.Publish


def _says_nothing_of_it(session: Session, error: BaseException, *, lost: bool) -> bool:
    """Whether *error* is a signal handler's, a time-out of gevent's or a callback's, and not about the message.

    :param lost: whether it came while another connection was looked for.
    """
    if not lost:
        return is_interruption(session, error)
    return not isinstance(error, Exception) or not raised_by_library(error)


def _as_kombu_ends_retries(
    connection: Any, error: BaseException, name: str, message_id: str
) -> BaseException:
    """What kombu makes of the last *error* of retries: an ``OperationalError``, if it might have tried again.

    It is of the class of *error* as well, and has its notes.
    """
    recoverable = (
        *connection.recoverable_connection_errors,
        *connection.recoverable_channel_errors,
    )
    if not isinstance(error, recoverable):
        return error
    last = PublishError(
        f"message {message_id} could not be published ({type(error).__name__}: {error})", message_id
    ).like(error)
    last.pool, last.__cause__ = name, error
    for note in getattr(error, "__notes__", ()):
        last.add_note(note)
    return last


def _note_interruption(
    error: BaseException, name: str, message_id: str, *, maybe_there: bool
) -> None:
    if maybe_there:
        error.add_note(
            f"pool {name!r}: the publish of message {message_id} was interrupted; it may be in the broker, or not"
        )
    else:
        error.add_note(
            f"pool {name!r}: the publish of message {message_id} was interrupted before it was sent; "
            "it is not in the broker"
        )
