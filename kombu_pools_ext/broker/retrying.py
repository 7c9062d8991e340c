"""A publish that failed: was it sent, may it be tried again, and where?

Nothing is repaired in place. A connection that broke goes back to its pool, which closes it, and the same producer goes
on with another one, under the same bound on the pool, with the same ``message_id``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from amqp import spec
from amqp.exceptions import AMQPError, ChannelError, NotFound
from kombu.exceptions import OperationalError

from ..errors import PublishError, PublishReturned, PublishUnknown
from ..settings import RetryPolicy
from .arguments import check_retry_policy
from .redis_answers import is_answer, refusal
from .soundness import is_from_wire, is_interruption

if TYPE_CHECKING:
    from .producer_views import ProducerView

__all__ = ["carry_on", "named"]

#: The parameters of :meth:`kombu.Producer.publish` after the body, in their order.
_PARAMETERS = (
    "routing_key",
    "delivery_mode",
    "mandatory",
    "immediate",
    "priority",
    "content_type",
    "content_encoding",
    "serializer",
    "headers",
    "compression",
    "exchange",
    "retry",
    "retry_policy",
    "declare",
    "expiration",
    "timeout",
    "confirm_timeout",
)
#: What a borrower may set on a producer, besides its exchange.
_ATTRIBUTES = ("routing_key", "serializer", "compression", "auto_declare", "on_return")


def named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Give names in *kwargs* to arguments of ``publish``, where there are so many that ``retry`` may be among them."""
    if len(args) > len(_PARAMETERS):
        # kombu says what is wrong with it.
        return args
    for name, value in zip(_PARAMETERS, args, strict=False):
        if name in kwargs:
            raise TypeError(f"publish() got multiple values for argument {name!r}")
        kwargs[name] = value
    return ()


class _Plan:
    """When to try again: the pool's, or what the caller says in kombu's words."""

    def __init__(self, pools: RetryPolicy | None, retry: Any, given: Mapping[str, Any]) -> None:
        wanted = pools is not None if retry is None else bool(retry)
        own = pools if pools is not None else RetryPolicy(max_retries=0)
        #: Tries after the first; ``None`` is as many as the time allows.
        self.most: int | None = 0
        if wanted:
            # kombu's default is to try for ever.
            self.most = given.get("max_retries", None if pools is None else own.max_retries)
        self.start = given.get("interval_start", own.interval_start) or 0
        self.step = given.get("interval_step", own.interval_step) or 0
        self.longest = given.get("interval_max", own.interval_max)
        self.errback = given.get("errback")
        self.on_revive = given.get("on_revive")
        errors = given.get("retry_errors") or ()
        self.more_errors = errors if isinstance(errors, type) else tuple(errors)
        self.wanted = wanted

    def pause(self, tries: int) -> float | None:
        """Seconds before try number *tries* + 2; ``None`` if there is none."""
        if self.most is not None and tries >= self.most:
            return None
        pause = self.start + tries * self.step
        return float(pause if self.longest is None else min(pause, self.longest))


def carry_on(
    view: ProducerView,
    item: Any,
    error: BaseException,
    again: Callable[[], Any],
    *,
    retry: Any,
    retry_policy: Mapping[str, Any] | None,
    deadline: float,
    kwargs: dict[str, Any],
) -> Any:
    """Try again to publish, or raise what there is to say.

    :param item: the connection of the first try.
    :param error: what the first try ended with.
    :param again: publishes on the connection that *view* has now.
    :param deadline: of everything, in seconds of ``time.monotonic``.
    :param kwargs: those of ``publish``: they are bound to the new connection.
    """
    pool = view._pool
    # Only on our own wire is it known that what could not be written to its end is not there.
    certain = getattr(item, "wire", None) is not None
    recoverable = (*item.recoverable_connection_errors, OperationalError)
    try:
        check_retry_policy("retry_policy", retry_policy or {})
        plan = _Plan(pool.retry, retry, retry_policy or {})
    except (TypeError, ValueError) as wrong:
        # What became of the message is more than that it cannot be tried again.
        error.add_note(f"pool {pool.name!r}: it was not tried again: {wrong}")
        plan = _Plan(None, False, {})
    if getattr(getattr(view, "_batch_local", None), "current", None) is not None:
        # What a batch of kombu's has buffered is bound to its channel.
        plan.most = 0
    tries, maybe_there, declared_anew = 0, False, False
    kept: dict[str, Any] = {}
    try:
        while True:
            ended = view._lease.ended
            here = item if ended else view._lease.item
            own = _is_of_the_pool(error) if ended else is_from_wire(here, error)
            anew = False
            if not (own or isinstance(error, plan.more_errors)):
                # What somebody deleted since it was declared on this connection. The message is not there.
                anew = not declared_anew and _lacks_what_was_declared(error, kwargs)
                if not anew:
                    break
                declared_anew = True
            # An older py-amqp calls a write that was cut short a channel's error.
            torn = certain and own and not ended and here.wire.torn
            sent = isinstance(error, PublishUnknown) or (
                own and not certain and not ended and not is_answer(error) and _may_have_left(here)
            )
            maybe_there = maybe_there or sent
            pause = 0.0 if anew else _pause(plan, error, tries, torn=torn, recoverable=recoverable)
            if pause is None or time.monotonic() + pause >= deadline:
                break
            try:
                if anew and isinstance(error, PublishReturned):
                    # Whoever heard of the return has forgotten what was declared on this connection.
                    return again()
                tries += 1
                if not ended:
                    kept = _attributes(view)
                pool.give_up(view)
                if plan.errback is not None:
                    plan.errback(error, pause)
                if pause:
                    time.sleep(pause)
                pool.renew(view, deadline - time.monotonic())
                _rebind(view, kept, kwargs)
                if declared_anew:
                    _forget_declared(view._lease.item, kwargs)
                if plan.on_revive is not None:
                    plan.on_revive(_channel_of(view, deadline))
                return again()
            except BaseException as newer:
                error = newer
        raise _last_word(view, here, error, kwargs, maybe_there=maybe_there, plan=plan)
    finally:
        # Else the error would hold its traceback, that this frame, and the frame the error.
        del error


def _is_of_the_pool(error: BaseException) -> bool:
    """Whether *error* says that no other connection could be had for now."""
    return isinstance(error, OperationalError)


def _pause(
    plan: _Plan,
    error: BaseException,
    tries: int,
    *,
    torn: bool,
    recoverable: tuple[type[BaseException], ...],
) -> float | None:
    """Seconds before the next try after *error*; ``None`` if there is none."""
    cause = error.__cause__ if isinstance(error, PublishUnknown) else error
    if torn or isinstance(error, plan.more_errors) or isinstance(cause, recoverable):
        return plan.pause(tries)
    return None


def _lacks_what_was_declared(error: BaseException, kwargs: dict[str, Any]) -> bool:
    """Whether the broker has no queue or exchange for a message that came with its declarations."""
    if not kwargs.get("declare"):
        return False
    if isinstance(error, PublishReturned):
        return True
    return isinstance(error, NotFound) and getattr(error, "method_sig", None) == spec.Basic.Publish


def _forget_declared(item: Any, kwargs: dict[str, Any]) -> None:
    """Have *item* declare anew what the message came with."""
    for entity in kwargs["declare"]:
        item.declared_entities.discard(hash(entity))


def _last_word(
    view: ProducerView,
    item: Any,
    error: BaseException,
    kwargs: dict[str, Any],
    *,
    maybe_there: bool,
    plan: _Plan,
) -> BaseException:
    """*error*, or one that says that the message may be there.

    :param item: the connection that *error* was raised on, or the first one's if no other could be had.
    :param maybe_there: whether an earlier try, or this one, may have brought the message to the broker.
    """
    message_id, name = view.message_id_of(kwargs), view._pool.name
    wire = getattr(item, "wire", None)
    ended = view._lease.ended
    own = ended or is_from_wire(item, error)
    if not ended and is_interruption(item, error):
        _note_interruption(error, name, message_id, maybe_there=maybe_there or _may_have_left(item))
        return error
    if maybe_there and (wire is not None or plan.wanted) and not isinstance(error, PublishUnknown):
        unknown = PublishUnknown(
            f"message {message_id} may be in the broker, or not: a try that was sent had no answer, and the last "
            f"one failed ({type(error).__name__}: {error}); a copy is told by its message_id",
            message_id,
        )
        unknown.pool, unknown.__cause__ = name, error
        return unknown
    if isinstance(error, PublishError):
        error.pool = name
    elif is_answer(error) and not ended:
        return refusal(error, name, message_id, one_queue=view.has_one_queue(kwargs))
    elif wire is not None and _is_answer_to_it(item, error):
        error.add_note(
            f"pool {name!r}: the broker refused message {message_id}; it is not in the broker"
        )
    elif (wire is not None and (own or isinstance(error, ChannelError))) or (
        own and not ended and not _may_have_left(item)
    ):
        error.add_note(f"pool {name!r}: message {message_id} was not sent; it is not in the broker")
    return error


def _is_answer_to_it(item: Any, error: Any) -> bool:
    """Whether the broker has ended channel or connection for the message that *error* is about.

    Without confirms it may have done that for one before.
    """
    return (
        isinstance(error, AMQPError)
        and error.method_sig == spec.Basic.Publish
        and bool(item.established.confirm_publish)
    )


def _may_have_left(item: Any) -> bool:
    """Whether any byte of the last try was written, or may have been: what was interrupted says nothing of it."""
    below = getattr(item, "wire", None) or getattr(item, "bounds", None)
    # Nobody saw whether it had gone, where the transport is another one.
    return below is None or bool(below.spoken)


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


def _channel_of(view: ProducerView, deadline: float) -> Any:
    item = view._lease.item
    bound = getattr(item, "within", None)
    with nullcontext() if bound is None else bound(deadline):
        return view.channel  # type: ignore[attr-defined]  # a producer class is mixed in


def _attributes(view: ProducerView) -> dict[str, Any]:
    """What the borrower has said of it."""
    state = view.__dict__
    return {name: state[name] for name in (*_ATTRIBUTES, "exchange") if name in state}


def _rebind(view: ProducerView, kept: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """Go on with the same attributes, and with entities of the new connection: the old one is no place to declare."""
    state = view.__dict__
    channel = state["_channel"]
    exchange = kept.get("exchange")
    state.update(kept)
    if exchange is not None:
        state["exchange"] = exchange(channel)
    declare = kwargs.get("declare")
    if declare:
        kwargs["declare"] = [one(channel) if one.is_bound else one for one in declare]
