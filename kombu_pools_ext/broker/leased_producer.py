"""What the borrower of a producer holds: a view of a pooled producer, which is made for one lease and ends with it."""

from __future__ import annotations

import inspect
from time import monotonic
from typing import Any, Protocol, Self, cast

from kombu.messaging import Producer

from ..engine import Lease
from ..engine.fork import child_begins, mark
from ..errors import PublishReturned
from ..settings import RetryPolicy
from .amqp.compat import is_plain
from .arguments import named
from .batch import DEFAULT_SIZE, Batch, checked_size
from .batch_state import BatchState
from .foreign import session_of
from .kombu_batch import BoundedBatch
from .leased_connection import ENDED, LeasedConnection
from .message_id import message_ids, new_message_id
from .naming import uri_of
from .retrying import carry_on, seconds_for_one_try
from .session import Session
from .soundness import verdict_on

__all__ = ["MOST_CLASSES", "LeasedProducer", "view_types"]

#: Producer classes that are remembered, before all are forgotten: some applications make a class for each publish.
MOST_CLASSES = 1000

#: What a borrower may set on a producer, besides its exchange.
_ATTRIBUTES = ("routing_key", "serializer", "compression", "auto_declare", "on_return")
#: What a producer has of its connection: with another one it has others.
_OF_THE_CONNECTION = ("_channel", "__connection__", "_batch_local", "revived_on")
_MISSING = object()
#: What RabbitMQ's direct reply-to names its pseudo-queues: a reply is delivered, and called unroutable all the same.
REPLY_TO = "amq.rabbitmq.reply-to."


class Lender(Protocol):
    """The pool, as the producers that it has lent see it."""

    #: Seconds for one try of a publish, and for all of them unless the call says otherwise.
    confirm_timeout: float
    #: Whether a message that no queue takes is an error, where the publish does not say it.
    mandatory: bool | str
    #: When a publish whose connection broke is tried again on another one.
    retry: RetryPolicy | None

    @property
    def name(self) -> str:
        """What errors and logs call it."""
        ...

    def end_lease(
        self, view: LeasedProducer, error: BaseException | None, block_ends: bool = False
    ) -> None:
        """Take *view* back, which is released, or whose block is left with *error*."""
        ...

    def give_up(self, view: LeasedProducer, kept: dict[str, Any]) -> None:
        """Take the connection of *view* away and close it; *kept* are the attributes that it has until then."""
        ...

    def renew(self, view: LeasedProducer, timeout: float, *, unless_down: bool = False) -> None:
        """Lend another connection to *view*, which was given up, within *timeout* seconds."""
        ...

    def state_as_lent(self, view: LeasedProducer) -> dict[str, Any]:
        """The attributes that *view* had when it was lent; none, where that is not known."""
        ...

    def note_revival(self, view: LeasedProducer, given: Any, before: Any) -> None:
        """Note whose channel *view* has from now on, which had *before* until then."""
        ...

    def reads_no_more(self, item: Any) -> None:
        """Note that the connection is of no use until its release."""
        ...


class LeasedProducer(Producer):
    """A lent producer: everything of :class:`kombu.Producer`, and ``release`` gives it back.

    What is lent is of a subclass of this and of the pool's producer class, which :data:`view_types` makes; ``super()``
    here is the pool's producer class.
    """

    # The subclass has the slots: a producer class with slots of its own can have no other base with some.
    __slots__ = tuple[str, ...]()

    #: The lease of the connection; a view of it where the connections are a pool of ours.
    _lease: Lease[Any]
    _pool: Lender
    #: Whether a publish left the connection in an unknown state.
    _broken: bool
    #: The connection that a publish gave up when it broke, until there is another one or the producer is released.
    _lost: Any
    #: The batch that messages go into, within its block.
    _batch: BatchState | None
    #: Whether the class publishes as kombu's does, so that the fast path leads to the same.
    publishes_as_kombu = False
    #: What it is a view of.
    _producer_class: type[Any]
    #: Whether a message gets its ``message_id`` in ``_publish``, because the class's ``publish`` takes no properties.
    _names_below = False
    #: If so, the ids of the messages of one ``publish``, in their order: a retry gives each message its own again.
    _names: list[str]

    def release(self) -> None:
        """Give the producer back to its pool; the second time does nothing."""
        self._pool.end_lease(self, None)

    close = release

    def discard(self) -> None:
        """Give the producer back, and have its connection closed: what was done on it has no known end."""
        self._broken = True
        self._pool.end_lease(self, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: Any, exc_val: BaseException | None, exc_tb: Any) -> None:
        self._pool.end_lease(self, exc_val, True)

    def publish(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        """:meth:`kombu.Producer.publish`, which gives the message a ``message_id`` unless it has one.

        With confirms it returns when the broker has the message. It returns ``None``, unless a class with a ``publish``
        of its own returns something else. If the connection breaks, and the pool or the caller (``retry=True``) wants
        that, it is tried again on another one, which this producer has from then on; after any other failure of the
        connection it is not lent again.

        :param timeout: seconds for all tries with their pauses. Without it, they have the time of one try, unless a
            *retry_policy* says how many there are: then they have no bound in common.
        :param confirm_timeout: seconds for one try, its confirm included; by default the pool's. Over a pool of kombu's
            own, this and *timeout* are passed on to kombu as well, for what they mean there.
        :param retry: whether to try again; by default whether the pool does. Without a *retry_policy*, the pool's
            ``retry`` says how many tries there are, any number if it is ``None``; each waits for the end of an outage.
        :param retry_policy: kombu's, in place of the pool's: ``max_retries`` more tries. One that finds the broker down
            counts too, and fails at once. The pauses begin with ``interval_start`` seconds and grow by
            ``interval_step``, up to ``interval_max``; each of the three is 1 by default. ``max_retries: None`` is for
            ever; if it is left out, all tries together have the time of one.
        :raises PublishNacked: if at least one of the message's queues refused it; others may have it.
        :raises PublishRefused: if Redis answered with an error: it is out of memory, say.
        :raises PublishReturned: if it is ``mandatory``, which the pool may be by default, and no queue takes it. Where
            an ``on_return`` of the application hears of it, only if the alias has ``MANDATORY``.
        :raises PublishUnknown: if it was sent, and the connection broke or the time was up before the confirm came.
        :raises ValueError: for headers that a frame of the broker has no room for; nothing is sent.
        :raises OperationalError: if the connection broke and there is no other one; the next publish looks for one.
        :raises LeaseError: if it was released, or is another process's.
        :raises Exception: the transport's own, if it could not be sent, or its exchange is not there.
        """
        # Lease.item and new_message_id(), written out: two calls less for each message.
        if not mark[0]:
            child_begins()
        entry = self._lease.entry
        gone = entry is None or entry.lender is None
        item = self._given_up() if entry is None or gone else entry.item
        session = item.pooled_session
        if len(args) > 10:
            args = named(args, kwargs)
        if kwargs.get("message_id") is None and not self._names_below:
            kwargs["message_id"] = message_ids.make()
        retry, policy = kwargs.pop("retry", None), kwargs.pop("retry_policy", None)
        if self._pool.mandatory and "mandatory" not in kwargs:
            self._make_mandatory(args, kwargs)
        seconds = self._pool.confirm_timeout
        if "timeout" in kwargs or "confirm_timeout" in kwargs:
            seconds = seconds_for_one_try(seconds, kwargs)
        deadline = monotonic() + seconds
        batch = self._batch
        if batch is not None and batch.takes():
            return batch.publish(session, body, args, kwargs, deadline)
        try:
            if gone:
                # With a policy of the caller's, a broker that is down is not waited for within a try.
                message = _Retried(self, body, args, kwargs)
                session = message.reconnected(deadline, unless_down=bool(policy))
            return self.publish_on_session(session, body, args, kwargs, deadline)
        except BaseException as error:
            message, began = _Retried(self, body, args, kwargs), deadline - seconds
            return carry_on(
                message, session, error, retry=retry, policy=policy, began=began, seconds=seconds
            )

    def _make_mandatory(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Have a message that no queue takes come back, if the pool wants that where it goes."""
        # It may be the third of the positional arguments.
        if len(args) > 2 or self._names_below:
            return
        exchange = kwargs.get("exchange") or self.__dict__["exchange"]
        if self._pool.mandatory is True or not getattr(exchange, "name", exchange):
            key = args[0] if args else kwargs.get("routing_key")
            kwargs["mandatory"] = type(key) is not str or not key.startswith(REPLY_TO)

    def _given_up(self) -> Any:
        """The connection that a publish gave up when it broke, and found no other one for.

        :raises LeaseError: if there is none, because the producer was released.
        """
        item = getattr(self, "_lost", None)
        # The lease says that it has ended.
        return self._lease.item if item is None or self._batch is not None else item

    @property
    def leased_item(self) -> Any:
        """The connection of its lease.

        :raises LeaseError: if the producer was released, or belongs to another process.
        """
        return self._lease.item

    @property
    def publishes_on(self) -> Any:
        """The connection that it publishes on: the lease's, unless it was revived onto another one's channel."""
        return self._lease.item

    def revive(self, channel: Any) -> None:
        """Kombu's: publish on *channel* from now on, or on a connection's default channel; for the time of the lease.

        :raises LeaseError: if the producer was released, or belongs to another process.
        """
        self._lease.item  # noqa: B018  # raises after the end
        before = self.__dict__.get("_channel")
        self.undo_revival()
        super().revive(channel)
        self._pool.note_revival(self, channel, before)

    def undo_revival(self) -> None:
        """Let go of another connection's channel; does nothing here, see :class:`.revived.Revived`."""

    def publish_as_its_class(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        """Publish *body* as the producer's own class does."""
        return super().publish(body, *args, **kwargs)

    @property
    def name_of_pool(self) -> str:
        """What errors and logs call its pool."""
        return self._pool.name

    @property
    def seconds_to_publish(self) -> float:
        """Seconds for one try of a publish, its confirm included, where the call does not say it."""
        return self._pool.confirm_timeout

    @property
    def raises_returned(self) -> bool:
        """Whether a message that came back is an error although a callback has heard of it."""
        return bool(self._pool.mandatory)

    def message_id_of(self, kwargs: dict[str, Any]) -> str:
        """The ``message_id`` of what is being published."""
        message_id: str = kwargs["message_id"]
        return message_id

    def ids_of_publish(self, kwargs: dict[str, Any]) -> list[str]:
        """The ids of what one publish sends: more than one where a class of the user's does that."""
        return self._names if self._names_below else [kwargs["message_id"]]

    def has_one_queue(self, kwargs: dict[str, Any]) -> bool:
        """Whether what is being published goes to one queue, by the default exchange."""
        return not (kwargs.get("exchange") or self.__dict__["exchange"].name)

    def publish_on_session(
        self,
        session: Session,
        body: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float,
    ) -> Any:
        """Publish on *session*, without a retry, and note what that did to the connection."""
        try:
            return session.publish(self, body, args, kwargs, deadline)
        except BaseException as error:
            if isinstance(error, PublishReturned) and error.heard and not self._pool.mandatory:
                # As in kombu, nothing is raised if a callback has heard of it.
                return None
            self.note_what_broke(session, error)
            raise

    def note_what_broke(self, session: Session, error: BaseException) -> None:
        """Note what *error*, raised on *session*, did to the connection."""
        # When it is raised, because the caller may swallow it: half a frame may have been sent.
        if verdict_on(session, error) is not None:
            self._broken = True
            self._pool.reads_no_more(session.connection)

    @property
    def supports_batch_publish(self) -> bool:
        """Whether :meth:`batch` does more than to publish one message after the other."""
        return self._new_batch(1) is not None or bool(
            getattr(super(), "supports_batch_publish", False)
        )

    def batch(self, max_size: int = DEFAULT_SIZE) -> Batch:
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
        made = self._new_batch(max_size)
        if made is None and hasattr(super(), "batch"):
            kombus: Any = super().batch(max_size)
            item = self._lease.item
            session = item.pooled_session
            if session.bounds_batches and self.publishes_on is item:
                kombus = BoundedBatch(self, kombus, session, self._pool.confirm_timeout)
            return cast("Batch", kombus)
        return Batch(self, made or BatchState(self))

    def _new_batch(self, max_size: int) -> BatchState | None:
        """What takes the messages of a batch; ``None`` if each is published by itself, or by kombu's batch."""
        return self._lease.item.pooled_session.new_batch(self, max_size)  # type: ignore[no-any-return]  # of Any

    def __reduce__(self) -> Any:
        """A copy or pickle is a plain producer with the same settings, on no connection, as kombu's is.

        :raises LeaseError: if the producer was released, or belongs to another process.
        """
        self._lease.item  # noqa: B018  # raises after the end
        reduced: Any = super().__reduce__()
        make = self._producer_class if reduced[0] is type(self) else reduced[0]
        return (make, *reduced[1:])

    @property
    def released(self) -> bool:
        """Whether the lease has ended: released, or another process's."""
        return self._lease.ended

    @property
    def broken(self) -> bool:
        """Whether a publish broke the connection: it is closed at the release, and of no use until then."""
        return self._broken

    @property
    def connection(self) -> Any:
        """The connection that the producer publishes on; releasing it ends this lease too."""
        lease = self._lease
        return lease if isinstance(lease, LeasedConnection) else lease.item

    def __repr__(self) -> str:
        state = "released" if self._lease.ended else uri_of(self._lease.item)
        return f"<{type(self).__name__}: {state} at {id(self):#x}>"


class _Retried:
    """A message of a leased producer, as its retry sees it: each try has another connection, and all else alike."""

    __slots__ = ("_args", "_body", "_kept", "_producer", "kwargs")

    def __init__(
        self, producer: LeasedProducer, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._producer = producer
        self._body = body
        self._args = args
        self.kwargs = kwargs
        # What the borrower has set: an earlier publish may have given the connection up.
        self._kept = dict(producer.__dict__) if producer._lease.ended else {}

    @property
    def session(self) -> Session | None:
        producer = self._producer
        return None if producer._lease.ended else session_of(producer.publishes_on)

    @property
    def pool_name(self) -> str:
        return self._producer.name_of_pool

    @property
    def policy(self) -> RetryPolicy | None:
        return self._producer._pool.retry

    @property
    def message_id(self) -> str:
        return self._producer.message_id_of(self.kwargs)

    @property
    def has_one_queue(self) -> bool:
        return self._producer.has_one_queue(self.kwargs)

    @property
    def is_buffered(self) -> bool:
        batch = self._producer.__dict__.get("_batch_local")
        return getattr(batch, "current", None) is not None

    def send(self, deadline: float) -> Any:
        producer = self._producer
        session = producer._lease.item.pooled_session
        return producer.publish_on_session(session, self._body, self._args, self.kwargs, deadline)

    def give_up(self) -> None:
        producer = self._producer
        if not producer._lease.ended:
            self._kept = self._set_by_borrower()
        producer._pool.give_up(producer, self._kept)

    def _set_by_borrower(self) -> dict[str, Any]:
        """What says how it publishes, and what else the borrower has set on it, wrappers of its methods included."""
        producer = self._producer
        as_lent = producer._pool.state_as_lent(producer)
        return {
            name: value
            for name, value in producer.__dict__.items()
            if name not in _OF_THE_CONNECTION
            and (
                name in _ATTRIBUTES
                or name == "exchange"
                or as_lent.get(name, _MISSING) is not value
            )
        }

    def reconnect(self, timeout: float, *, unless_down: bool = False) -> None:
        producer, kept = self._producer, self._kept
        producer._pool.renew(producer, timeout, unless_down=unless_down)
        # The same attributes, and entities of the new connection: the old one is no place to declare.
        state = producer.__dict__
        channel = state["_channel"]
        exchange = kept.get("exchange")
        state.update(kept)
        if exchange is not None:
            state["exchange"] = exchange(channel)
        declare = self.kwargs.get("declare")
        if declare:
            self.kwargs["declare"] = [one(channel) if one.is_bound else one for one in declare]

    def reconnected(self, deadline: float, *, unless_down: bool) -> Session:
        """Return the session of another connection, which the producer gets by *deadline*."""
        self.reconnect(max(0.0, deadline - monotonic()), unless_down=unless_down)
        return self._producer._lease.item.pooled_session  # type: ignore[no-any-return]  # of Any

    def declare_anew(self) -> None:
        item = self._producer._lease.item
        for entity in self.kwargs["declare"]:
            item.declared_entities.discard(hash(entity))

    def channel(self, deadline: float) -> Any:
        producer = self._producer
        with producer._lease.item.pooled_session.within(deadline):
            return producer.channel


class _OwnPublish(LeasedProducer):
    """For a producer class whose own ``publish`` takes no properties: ``_publish`` gives each message its id."""

    __slots__ = tuple[str, ...]()

    _names_below = True
    #: How many ids this try has given.
    _given: int

    def publish(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        self._names, self._given = [], 0
        return super().publish(body, *args, **kwargs)

    def publish_on_session(
        self,
        session: Session,
        body: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float,
    ) -> Any:
        """Publish on *session*; each message gets the id that it had in an earlier try."""
        self._given = 0
        return super().publish_on_session(session, body, args, kwargs, deadline)

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
        return super()._publish(
            body, priority, content_type, content_encoding, headers, properties, *args, **kwargs
        )


def _takes_properties(producer_class: type[Any]) -> bool:
    """Whether its ``publish`` passes a ``message_id`` on, as kombu's does."""
    if producer_class.publish is Producer.publish:
        return True
    parameters = inspect.signature(producer_class.publish).parameters
    return "message_id" in parameters or any(
        one.kind is one.VAR_KEYWORD for one in parameters.values()
    )


def _guarded(own: property) -> property:
    """*own*, a producer class's ``channel``, for the borrower alone."""

    def channel(view: LeasedProducer) -> Any:
        # A view has a state of its own, so only the lease knows that it has ended, or that this is a forked child.
        view._lease.item  # noqa: B018
        return own.__get__(view)

    return property(channel, own.fset, own.fdel, own.__doc__)


def _shown_when_ended(producer_class: type[Any]) -> dict[str, Any]:
    """What the views of *producer_class* show when their own state is gone, but for what the class has itself."""
    return {
        name: ENDED[name]
        for name in ("_channel", "__connection__", "exchange", "_batch_local")
        if inspect.getattr_static(producer_class, name, None) is None
    }


def _as_kombus(producer_class: type[Any]) -> type[Any]:
    """Return *producer_class*, or a subclass of it and kombu's, if the pool was given one that only looks like it."""
    if issubclass(producer_class, Producer):
        return producer_class
    names = {"__slots__": (), "__module__": producer_class.__module__}
    return type(producer_class.__name__, (producer_class, Producer), names)


class _ViewTypes(dict[type[Any], "type[Any]"]):
    """By producer class, its views: of a subclass, so ``isinstance`` holds."""

    def __missing__(self, producer_class: type[Any]) -> type[Any]:
        if len(self) >= MOST_CLASSES:
            self.clear()
        usual = _takes_properties(producer_class)
        channel = inspect.getattr_static(producer_class, "channel", None)
        view_type = self[producer_class] = type(
            producer_class.__name__,
            (LeasedProducer if usual else _OwnPublish, _as_kombus(producer_class)),
            {
                "__slots__": (
                    *("_lease", "_pool", "_broken", "_batch", "_guard", "_lost"),
                    *(() if usual else ("_names", "_given")),
                ),
                "publishes_as_kombu": usual and is_plain(producer_class),
                "_producer_class": producer_class,
                **_shown_when_ended(producer_class),
                **({"channel": _guarded(channel)} if isinstance(channel, property) else {}),
                "__module__": producer_class.__module__,
                "__doc__": producer_class.__doc__,
            },
        )
        return view_type


#: A dict, for the hot path.
view_types = _ViewTypes()
