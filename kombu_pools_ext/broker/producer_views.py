"""What the borrower of a producer holds: a producer of kombu's, or of a class of his own, whose identity is a lease."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Any

import kombu
from vine import promise

from ..engine import Lease
from . import lean
from .arguments import CANNOT_BE_ENCODED, explain
from .batch import DEFAULT_SIZE, Batch, BatchState, checked_size
from .confirms import new_message_id
from .kombu_batch import BoundedBatch
from .lean import KOMBUS
from .naming import uri_of
from .redis_answers import is_answer, is_refusal, refusal
from .retrying import carry_on, named
from .shape import fits, is_plain
from .soundness import verdict_on
from .views import ConnectionView

if TYPE_CHECKING:
    from .producers import ProducerPool

__all__ = ["ProducerView", "view_types"]

#: What RabbitMQ's direct reply-to names its pseudo-queues: a reply is delivered, and called unroutable all the same.
REPLY_TO = "amq.rabbitmq.reply-to."


class ProducerView:
    """Mixed into a producer class: its ``release`` ends a lease, its ``publish`` notes what broke."""

    __slots__ = tuple[str, ...]()

    #: The lease of the connection; a view of it where the connections are a pool of ours.
    _lease: Lease[Any]
    _pool: ProducerPool
    #: Whether a publish left the connection in an unknown state.
    _broken: bool
    #: The batch that messages go into, within its block.
    _batch: BatchState | None
    #: Whether the class publishes as kombu's does, so that the short way leads to the same.
    _short = False
    #: Whether each message is named further below, for ``publish`` takes no properties.
    _names_below = False

    def release(self) -> None:
        """Give the producer back to its pool; the second time does nothing."""
        self._pool._end(self, None)

    close = release

    def __enter__(self) -> Any:
        return self

    def __exit__(self, exc_type: Any, exc_val: BaseException | None, exc_tb: Any) -> None:
        self._pool._end(self, exc_val)

    def publish(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        """:meth:`kombu.Producer.publish`, which gives the message a ``message_id`` unless it has one.

        With confirms it returns when the broker has the message. It returns ``None``, on each transport, with confirms
        or without: py-amqp's promise, which kombu would return, has been kept by then. A class with a ``publish`` of
        its own may return something else. If the connection breaks, and the pool or the caller
        (``retry=True``) wants that, it is tried again on another connection, which this producer has from then on;
        after any other failure on the wire the connection is not lent again.

        :param timeout: seconds for everything, every try and the confirm included; so is ``confirm_timeout``, and
            the pool's ``confirm_timeout`` holds besides. Over a pool of kombu's own they mean what they mean there.
        :raises PublishNacked: if at least one of the message's queues refused it; others may have it.
        :raises PublishRefused: if Redis answered with an error: it is out of memory, say.
        :raises PublishReturned: if it is ``mandatory``, which the pool may be by default, and there is no queue for it.
        :raises PublishUnknown: if it was sent, and the connection broke or the time was up before the confirm came.
        :raises ValueError: for headers that a frame of the broker has no room for; nothing is sent.
        :raises LeaseError: if the producer was released, or belongs to another process.
        :raises Exception: the transport's own, if the message could not be sent, or its exchange is not there.
        """
        item = self._lease.item
        if len(args) > 10:
            args = named(args, kwargs)
        if kwargs.get("message_id") is None and not self._names_below:
            kwargs["message_id"] = new_message_id()
        retry, policy = kwargs.pop("retry", None), kwargs.pop("retry_policy", None)
        pool = self._pool
        mandatory = pool.mandatory
        # It may be the third of the positional arguments.
        if mandatory and "mandatory" not in kwargs and len(args) < 3 and not self._names_below:
            exchange = kwargs.get("exchange") or self.__dict__["exchange"]
            if mandatory is True or not getattr(exchange, "name", exchange):
                key = args[0] if args else kwargs.get("routing_key")
                kwargs["mandatory"] = type(key) is not str or not key.startswith(REPLY_TO)
        seconds = pool.confirm_timeout
        if "timeout" in kwargs or "confirm_timeout" in kwargs:
            seconds = self._seconds(kwargs)
        deadline = monotonic() + seconds
        batch = self._batch
        if batch is not None and batch.takes():
            return batch.publish(item, body, args, kwargs, deadline)
        if pool.foreign and "message_id" in kwargs:
            # py-amqp's own bound: for each read, not for all of it.
            kwargs.setdefault("confirm_timeout", seconds)
        try:
            return self._publish_once(item, body, args, kwargs, deadline)
        except BaseException as error:
            return carry_on(
                self,
                item,
                error,
                lambda: self._publish_once(self._lease.item, body, args, kwargs, deadline),
                retry=retry,
                retry_policy=policy,
                deadline=deadline,
                kwargs=kwargs,
            )

    def _send(self, item: Any, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Publish on *item* by the short way if there is one, else as the producer's class does.

        :raises TypeError, ValueError: with name and value of what AMQP cannot carry.
        """
        try:
            if self._short and not args:
                done = lean.publish(self, item, body, **kwargs)
                if done is not KOMBUS:
                    return done
            done = super().publish(body, *args, **kwargs)  # type: ignore[misc]  # the producer class behind this mix-in
            return None if type(done) is promise else done
        except CANNOT_BE_ENCODED as error:
            given = dict(kwargs)
            named(args, given)
            given["serializer"] = given.get("serializer") or self.serializer  # type: ignore[attr-defined]  # a producer's
            explain(error, body, given)
            raise

    def message_id_of(self, kwargs: dict[str, Any]) -> str:
        """The ``message_id`` of what is being published."""
        message_id: str = kwargs["message_id"]
        return message_id

    def told_of_batch(self, error: BaseException) -> BaseException:
        """What to raise for *error*, which a batch of kombu's has ended with."""
        if not is_answer(error):
            return error
        self._broken = self._broken or not is_refusal(error)
        return refusal(error, self._pool.name, None)

    def has_one_queue(self, kwargs: dict[str, Any]) -> bool:
        """Whether what is being published goes to one queue, by the default exchange."""
        return not (kwargs.get("exchange") or self.__dict__["exchange"].name)

    def _publish_once(
        self, item: Any, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float
    ) -> Any:
        wire = getattr(item, "wire", None)
        try:
            if wire is not None:
                # Within the deadline, written out: a context costs as much as all the encoding.
                before = wire.deadline
                if before is None or deadline < before:
                    wire.deadline = deadline
                wire.spoken = False
                try:
                    done = self._send(item, body, args, kwargs)
                finally:
                    wire.deadline = before
                return done
            # Redis's sockets have bounds in place of a wire.
            bounds = getattr(item, "bounds", None)
            try:
                with nullcontext() if bounds is None else bounds.publishing(deadline):
                    done = super().publish(body, *args, **kwargs)  # type: ignore[misc]  # as in _send()
                return None if type(done) is promise else done
            except Exception as error:
                if not is_refusal(error):
                    # Another answer is one to this connection: to a retry, another one may not give it.
                    self._broken = self._broken or is_answer(error)
                    raise
                name, one_queue = self.message_id_of(kwargs), self.has_one_queue(kwargs)
                raise refusal(error, self._pool.name, name, one_queue=one_queue) from error
        except BaseException as error:
            self._note(item, error)
            raise

    def _note(self, item: Any, error: BaseException) -> None:
        # Noted when it is raised, because the caller may swallow it: half a frame may be on the wire.
        if verdict_on(item, error) is not None:
            self._broken = True
            self._pool.reads_no_more(item)

    def _seconds(self, kwargs: dict[str, Any]) -> float:
        """What a publish may take."""
        seconds = self._pool.confirm_timeout
        for name in ("timeout", "confirm_timeout"):
            given = kwargs.get(name)
            if given is not None and given < seconds:
                seconds = given
        return seconds

    @property
    def supports_batch_publish(self) -> bool:
        """Whether :meth:`batch` does more than to publish one message after the other."""
        confirmed, gathers = self._ways_to_batch()
        return confirmed or gathers or bool(getattr(super(), "supports_batch_publish", False))

    def batch(self, max_size: int = DEFAULT_SIZE) -> Any:
        """Publish many messages in one block, without waiting for the confirm of each.

        ::

            with producer.batch() as batch:
                for order in orders:
                    producer.publish(order, routing_key="orders")

        With confirms, the end of the block waits for those that are missing, for ``confirm_timeout`` seconds at most.
        On AMQP messages may be gathered, and written together, until then; ``flush()`` writes them, too.
        On Redis it is kombu's own batch, from kombu 5.7 on; elsewhere each message is published at once.

        :param max_size: messages that may be without their confirm; 1,000 at most. Without confirms, those sent
            together.
        :returns: a context manager with ``flush()``, which waits now; within another one of this producer it joins
            that.
        :raises BatchFailed: from the block's end, from ``flush()`` and from a ``publish`` within, if not all messages
            were confirmed. It has the outcome of each that the batch was given; the others were not published.
        :raises Exception: the transport's own from the same places, if there are no confirms, and what was gathered
            could not be written.
        :raises ValueError: if *max_size* is no whole number above 0.
        :raises LeaseError: if the producer was released, or belongs to another process.
        """
        max_size = checked_size(max_size)
        confirmed, gathers = self._ways_to_batch()
        if not (confirmed or gathers) and hasattr(super(), "batch"):
            kombus = super().batch(max_size)  # type: ignore[misc]  # kombu's own
            item = self._lease.item
            if self._pool.foreign:
                return kombus
            return BoundedBatch(self, kombus, item, self._pool.confirm_timeout)
        return Batch(self, max_size, confirmed=confirmed, gathers=gathers)

    def _ways_to_batch(self) -> tuple[bool, bool]:
        """Whether the broker answers each message; if not, whether they may be written together."""
        item = self._lease.item
        amqp = getattr(item, "wire", None) is not None
        confirmed = amqp and item.established.confirm_publish
        return confirmed, amqp and not confirmed and self._short and fits()

    @property
    def released(self) -> bool:
        """Whether the lease has ended: released, or another process's."""
        return self._lease.ended

    @property
    def broken(self) -> bool:
        """Whether a publish failed on the wire: the connection is closed at the release, and of no use until then."""
        return self._broken

    @property
    def connection(self) -> Any:
        """The connection that the producer publishes on; releasing it ends this lease too."""
        lease = self._lease
        return lease if isinstance(lease, ConnectionView) else lease.item

    def __repr__(self) -> str:
        state = "released" if self._lease.ended else uri_of(self._lease.item)
        return f"<{type(self).__name__}: {state} at {id(self):#x}>"


class _OwnPublish(ProducerView):
    """For a producer class with a ``publish`` of its own that takes no properties: each message is named below it."""

    __slots__ = tuple[str, ...]()

    _names_below = True
    #: The names of the messages of one ``publish``, in their order: a retry gives each its own again.
    _names: list[str]
    #: How many of them this try has given.
    _given: int

    def publish(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        self._names, self._given = [], 0
        return super().publish(body, *args, **kwargs)

    def _publish_once(
        self, item: Any, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float
    ) -> Any:
        self._given = 0
        return super()._publish_once(item, body, args, kwargs, deadline)

    def message_id_of(self, kwargs: dict[str, Any]) -> str:
        return self._names[0] if self._names else "(without a message_id)"

    def _publish(
        self,
        body: Any,
        priority: Any,
        content_type: Any,
        content_encoding: Any,
        headers: Any,
        properties: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if self._given == len(self._names):
            self._names.append(properties.get("message_id") or new_message_id())
        properties.setdefault("message_id", self._names[self._given])
        self._given += 1
        return super()._publish(  # type: ignore[misc]  # as in _send()
            body, priority, content_type, content_encoding, headers, properties, *args, **kwargs
        )


def _takes_properties(producer_class: type[Any]) -> bool:
    """Whether its ``publish`` passes a ``message_id`` on, as kombu's does."""
    if producer_class.publish is kombu.Producer.publish:
        return True
    parameters = inspect.signature(producer_class.publish).parameters
    return "message_id" in parameters or any(
        one.kind is one.VAR_KEYWORD for one in parameters.values()
    )


def _guarded(own: property) -> property:
    """*own*, a producer class's ``channel``, for the borrower alone."""

    def channel(view: ProducerView) -> Any:
        # A view has its attributes for itself: in a forked child, and after the end, it is the lease that says so.
        view._lease.item  # noqa: B018
        return own.__get__(view)

    return property(channel, own.fset, own.fdel, own.__doc__)


class _ViewTypes(dict[type[Any], "type[Any]"]):
    """By producer class, its views: of a subclass, so ``isinstance`` holds."""

    def __missing__(self, producer_class: type[Any]) -> type[Any]:
        usual = _takes_properties(producer_class)
        channel = inspect.getattr_static(producer_class, "channel", None)
        view_type = self[producer_class] = type(
            producer_class.__name__,
            (ProducerView if usual else _OwnPublish, producer_class),
            {
                "__slots__": (
                    *("_lease", "_pool", "_broken", "_batch", "_guard"),
                    *(() if usual else ("_names", "_given")),
                ),
                "_short": usual and is_plain(producer_class),
                **({"channel": _guarded(channel)} if isinstance(channel, property) else {}),
                "__module__": producer_class.__module__,
                "__doc__": producer_class.__doc__,
            },
        )
        return view_type


#: A dict, for the hot path.
view_types = _ViewTypes()
