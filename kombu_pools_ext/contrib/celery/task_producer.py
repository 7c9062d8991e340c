"""What an adopted application publishes on."""

from __future__ import annotations

from typing import Any, Protocol, Self

from kombu.connection import Connection
from kombu.exceptions import LimitExceeded, OperationalError
from kombu.messaging import Producer
from kombu.utils.functional import retry_over_time

from ...broker.arguments import named
from ...broker.leased_producer import LeasedProducer
from ...errors import LeaseError
from .deferred_connection import DeferredConnection
from .errors import as_operational

__all__ = ["Road", "TaskProducer"]

#: The parts of a retry policy that say when to try again.
_PAUSES = ("interval_start", "interval_step", "interval_max")


class Road(Protocol):
    """The alias of an application, as its producers see it."""

    #: The alias.
    using: str
    #: The retry policy of the tasks whose call has none, which ``RETRY`` stands in for.
    default_policy: Any

    @property
    def template(self) -> Connection:
        """A connection with the alias's settings, which is never opened."""
        ...

    def lease(self, timeout: float | None) -> LeasedProducer:
        """Lend a producer; ``None`` seconds stand for ``ACQUIRE_TIMEOUT``."""
        ...

    def publish(self, body: Any, kwargs: dict[str, Any], timeout: float | None) -> None:
        """Publish as :meth:`.Pools.publish`, where the arguments are such as it takes, and else on a lease."""
        ...

    def write(self, body: Any, kwargs: dict[str, Any]) -> bool:
        """Make the message a row of the current transaction, where the alias has ``OUTBOX``; return whether it was."""
        ...

    def count_task(self) -> None:
        """Note that a task was sent."""
        ...


def _property_of_lease(name: str, without: Any = None) -> property:
    """Return an attribute of the lent producer; where none is lent yet, *without* is what it would be."""

    def get(producer: TaskProducer) -> Any:
        return getattr(producer.leased, name) if producer.has_lease else without

    def set(producer: TaskProducer, value: Any) -> None:
        setattr(producer.leased, name, value)

    return property(get, set)


class TaskProducer(Producer):
    """A producer whose ``publish`` is that of the alias: over the shared connection, or over a lease for each message.

    Everything else of a producer, such as ``channel``, needs a connection. It takes a lease then, which it publishes
    on from then on, and keeps until its release.

    :param road: the alias.
    :param timeout: seconds to wait for a producer; ``None`` stands for ``ACQUIRE_TIMEOUT``.
    """

    def __init__(self, road: Road, timeout: float | None = None) -> None:
        # Not kombu's __init__, because there is no channel.
        self._road = road
        self._timeout = timeout
        self._lease: LeasedProducer | None = None
        self._released = False
        #: Whether its last task became a row, as the event about it has to.
        self._has_written = False

    exchange = _property_of_lease("exchange")
    routing_key = _property_of_lease("routing_key", "")
    serializer = _property_of_lease("serializer")
    compression = _property_of_lease("compression")
    auto_declare = _property_of_lease("auto_declare", False)
    on_return = _property_of_lease("on_return")

    @property
    def has_lease(self) -> bool:
        """Whether it has taken a lease."""
        return self._lease is not None

    @property
    def leased(self) -> LeasedProducer:
        """The lent producer that it stands for; lent now, if none is.

        :raises LeaseError: if it was released.
        :raises OperationalError: if the broker cannot be reached, or all connections are in use.
        """
        lease = self._lease
        if lease is None:
            if self._released:
                raise LeaseError(
                    f"alias {self._road.using!r}: the producer was released; acquire another one"
                )
            try:
                lease = self._lease = self._road.lease(self._timeout)
            except LimitExceeded as error:
                raise as_operational(error, self._road.using) from (error.__cause__ or error)
        return lease

    @property
    def channel(self) -> Any:
        """The channel of the lease."""
        return self.leased.channel

    @property
    def connection(self) -> Any:
        """The connection of the lease; one that stands for it, where none is lent yet."""
        lease = self._lease
        if lease is not None:
            return lease.connection
        return DeferredConnection(self._road.template, lambda: self.leased.connection)

    def publish(self, body: Any, *args: Any, **kwargs: Any) -> None:
        """:meth:`kombu.Producer.publish`, by the rules of the alias.

        With ``OUTBOX`` a task that is sent within a transaction becomes a row of it, unless it is tried again: a task
        that fails rolls its transaction back, and would take the message along.

        ``RETRY`` stands in for the application's own ``task_publish_retry_policy``; with a *retry_policy* of the
        call's own, reaching the broker is tried as often as it says, and so is the publish. ``MANDATORY`` is about
        tasks: other messages, such as events and results, come back only if the call asks for it.

        :raises OperationalError: as :meth:`.Pools.publish`; also if all connections are in use.
        """
        args = named(args, kwargs)
        policy = self._take_policy(kwargs)
        is_task = _is_task(kwargs)
        if "mandatory" not in kwargs and not is_task:
            kwargs["mandatory"] = False
        if is_task:
            self._has_written = (
                not args and not _is_retry(body, kwargs) and self._road.write(body, kwargs)
            )
        elif self._has_written and self._road.write(body, kwargs):
            return
        if is_task and self._has_written:
            self._road.count_task()
            return
        try:
            if args or policy or self._lease is not None:
                self._publish_on_lease(body, args, kwargs, policy)
            else:
                self._road.publish(body, kwargs, self._timeout)
        except LimitExceeded as error:
            raise as_operational(error, self._road.using) from (error.__cause__ or error)
        if is_task:
            self._road.count_task()

    def _take_policy(self, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """Take the retry policy out of *kwargs*; return it if it is the call's own."""
        retry, policy = kwargs.pop("retry", None), kwargs.pop("retry_policy", None)
        if retry is not None and not retry:
            kwargs["retry"] = False
            return None
        return None if not policy or policy == self._road.default_policy else dict(policy)

    def _publish_on_lease(
        self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any], policy: Any
    ) -> None:
        if policy:
            kwargs.update(retry=True, retry_policy=policy)
        if self._lease is not None:
            self._lease.publish(body, *args, **kwargs)
            return
        if not policy:
            with self._road.lease(self._timeout) as producer:
                producer.publish(body, *args, **kwargs)
            return
        lease = retry_over_time(
            self._road.lease,
            _may_be_reached_later(policy),
            args=(self._timeout,),
            errback=_errback_of(policy),
            max_retries=policy.get("max_retries", 0),
            **{name: policy[name] for name in _PAUSES if policy.get(name) is not None},
        )
        with lease as producer:
            producer.publish(body, *args, **kwargs)

    def revive(self, channel: Any) -> None:
        """Publish on another channel; its own connection needs no revival, because each publish looks for one."""
        if not isinstance(channel, DeferredConnection):
            self.leased.revive(channel)

    def declare(self) -> Any:
        """:meth:`kombu.Producer.declare`."""
        return self.leased.declare()

    def maybe_declare(self, entity: Any, retry: bool = False, **retry_policy: Any) -> Any:
        """:meth:`kombu.Producer.maybe_declare`."""
        return self.leased.maybe_declare(entity, retry, **retry_policy)

    def batch(self, *args: Any, **kwargs: Any) -> Any:
        """:meth:`.LeasedProducer.batch`."""
        return self.leased.batch(*args, **kwargs)

    @property
    def supports_batch_publish(self) -> bool:
        """:attr:`.LeasedProducer.supports_batch_publish`."""
        return self.leased.supports_batch_publish

    def release(self) -> None:
        """Give the lease back, if it has one; the second time does nothing."""
        lease, self._lease = self._lease, None
        self._released = True
        if lease is not None:
            lease.release()

    close = release

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: Any, exc_val: BaseException | None, exc_tb: Any) -> None:
        lease, self._lease = self._lease, None
        self._released = True
        if lease is not None:
            lease.__exit__(exc_type, exc_val, exc_tb)

    def __reduce__(self) -> Any:
        return self.leased.__reduce__()

    def __repr__(self) -> str:
        state = "released" if self._released else "with a lease" if self._lease else "no lease"
        return f"<{type(self).__name__} of alias {self._road.using!r}: {state}>"


def _is_task(kwargs: dict[str, Any]) -> bool:
    """Whether a message is a task: Celery gives it both of these, whatever its protocol."""
    return "correlation_id" in kwargs and "reply_to" in kwargs


def _may_be_reached_later(policy: dict[str, Any]) -> tuple[type[BaseException], ...]:
    """Return the errors of an acquire after which another one may succeed."""
    more = policy.get("retry_errors") or ()
    return (OperationalError, *(more if isinstance(more, tuple | list) else (more,)))


def _is_retry(body: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a task has been tried before: protocol 2 says so in the headers, protocol 1 in the body."""
    headers = kwargs.get("headers") or {}
    told = headers if "id" in headers else body
    return bool(isinstance(told, dict) and told.get("retries"))


def _errback_of(policy: dict[str, Any]) -> Any:
    """Return what is called before each pause: the policy's own callback, which gets the error and the pause."""
    own = policy.get("errback")

    def errback(error: BaseException, intervals: Any, retries: int) -> float:
        pause = float(next(intervals))
        if own is not None:
            own(error, pause)
        return pause

    return errback
