"""The alias that an application publishes over, and what Celery is given in place of its own pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from amqp.basic_message import Message
from kombu.connection import Connection

from ...aliases import Pools
from ...broker.arguments import checked
from ...broker.connections import ConnectionPool
from ...broker.leased_producer import LeasedProducer
from ...broker.producers import ProducerPool
from ...broker.publish_keywords import MessageKeywords
from ...prepared import prepare
from ...settings import PoolSettings
from .brokers import difference
from .errors import CannotAdopt
from .faces import ConnectionsFace, ProducersFace

__all__ = ["Adoption"]

#: The keywords that :meth:`.Pools.publish` knows, and the properties of AMQP, which are the only ones it can carry.
_KNOWN = frozenset(
    {
        "routing_key",
        "exchange",
        *MessageKeywords.__annotations__,
        *(one for one, _ in Message.PROPERTIES),
    }
)

#: The part of its time that a call has waited at least when the outage is as old as that: an opening begins a little
#: after the call that needs it.
_WAITED = 0.9


class Adoption:
    """One application over one alias.

    :param app: the Celery application.
    :param using: the alias.
    :param find_pools: returns the pools; called at the first use.
    """

    def __init__(self, app: Any, using: str, find_pools: Callable[[], Pools]) -> None:
        self._app = app
        self.using = using
        self.find_pools = find_pools
        self._template: tuple[PoolSettings, Connection] | None = None
        self._is_checked = False
        self.default_policy: Any = None
        #: What the application has as ``pool`` and ``producer_pool``.
        self.connections_face = ConnectionsFace(self)
        self.producers_face = ProducersFace(self, self.connections_face)

    @property
    def _settings(self) -> PoolSettings:
        return self.find_pools().settings_of(self.using)

    @property
    def acquire_timeout(self) -> float | None:
        """``ACQUIRE_TIMEOUT``, in seconds; ``None`` is without end."""
        return self._settings.acquire_timeout

    @property
    def connections(self) -> ConnectionPool:
        """The connection pool of the alias."""
        return self.find_pools().connections[self.using]

    @property
    def producers(self) -> ProducerPool:
        """The producer pool of the alias."""
        return self.find_pools().producers[self.using]

    @property
    def template(self) -> Connection:
        """A connection with the alias's settings, which is never opened."""
        settings = self._settings
        made = self._template
        # Stored as one value, because another thread may reload between two steps.
        if made is None or made[0] is not settings:
            made = self._template = settings, settings.connection()
        return made[1]

    @property
    def difference(self) -> str | None:
        """Why tasks would not reach the workers of the application; ``None`` if they would. Nothing is opened."""
        return difference(self._app, self.using, self._settings)

    def check(self) -> None:
        """Compare the broker of the application with that of the alias, once, when both are known.

        :raises CannotAdopt: if they are different.
        :raises UnknownAlias: if the alias is not configured.
        """
        if self._is_checked:
            return
        wrong = self.difference
        if wrong is not None:
            raise CannotAdopt(wrong)
        # From now on it is known that there are tasks to be counted.
        self.find_pools().task_counter(self.using)
        # Celery keeps it at the first task as well.
        self.default_policy = self._app.conf.task_publish_retry_policy
        self._is_checked = True

    def patience(self, timeout: float | None) -> float | None:
        """Return the seconds that a caller waits, ``None`` being without end.

        The first calls of an outage wait for its end. When it has lasted for so long, no later call waits again.

        :param timeout: seconds; ``None`` stands for ``ACQUIRE_TIMEOUT``.
        """
        if timeout is None:
            timeout = self.acquire_timeout
        if timeout is not None and self.producers.is_away_for(timeout * _WAITED):
            return 0.0
        return timeout

    def lease(self, timeout: float | None) -> LeasedProducer:
        """Lend a producer.

        :param timeout: seconds; ``None`` stands for ``ACQUIRE_TIMEOUT``.
        """
        timeout = self.patience(timeout)
        return self.producers.acquire(block=timeout is None, timeout=timeout)

    def publish(self, body: Any, kwargs: dict[str, Any], timeout: float | None) -> None:
        """Publish as :meth:`.Pools.publish`; on a lease, as kombu does, if that would refuse the arguments."""
        pools = self.find_pools()
        settings = pools.settings_of(self.using)
        if not _KNOWN.issuperset(kwargs) and settings.is_amqp:
            # Options of a task that are no properties of a message; py-amqp leaves them out as well.
            kwargs = {name: value for name, value in kwargs.items() if name in _KNOWN}
        patience = self.patience(timeout)
        options = kwargs.copy()
        key, exchange = options.pop("routing_key", None), options.pop("exchange", None)
        try:
            key, exchange, options = checked(key, exchange, options, body)
            on_a_lease = patience == 0
        except (TypeError, ValueError):
            on_a_lease = True
        if on_a_lease:
            with self.producers.acquire(block=patience is None, timeout=patience) as producer:
                producer.publish(body, **kwargs)
            return
        pools.publish_checked(
            body,
            *(key, exchange, options),
            using=self.using,
            acquire_timeout=patience,
        )

    def write(self, body: Any, kwargs: dict[str, Any]) -> bool:
        """Make a row of the current transaction of the message, where the alias has ``OUTBOX``; return whether it was.

        :raises TypeError, ValueError: for arguments that no row can hold.
        :raises EncodeError: if *body* cannot be serialized.
        """
        pools = self.find_pools()
        write = pools.row_writer(self.using)
        if write is None:
            return False
        known = {name: one for name, one in kwargs.items() if name in _KNOWN and one is not None}
        for name in ("retry", "retry_policy"):
            # A relay tries until the broker has the message.
            known.pop(name, None)
        write(prepare(pools, body, using=self.using, **known))
        return True

    def count_task(self) -> None:
        """Note that a task was sent, for the status of the alias."""
        self.find_pools().task_counter(self.using).add()

    def put_in_place(self) -> None:
        """Give the application its connection pool; a fork, and the end of the application, take it away."""
        if self._app._pool is not self.connections_face:
            self._app._pool = cast("Any", self.connections_face)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._app!r} over alias {self.using!r}>"
