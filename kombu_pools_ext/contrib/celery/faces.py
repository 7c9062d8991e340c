"""What an adopted application has as its pools. Neither holds a pool: a reload of the settings may replace it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from kombu.exceptions import LimitExceeded, OperationalError

from ...broker.connections import ConnectionPool
from ...broker.producers import ProducerPool
from .errors import as_operational
from .task_producer import Road, TaskProducer

__all__ = ["ConnectionsFace", "Pooled", "ProducersFace"]


class Pooled(Road, Protocol):
    """The alias of an application, as its pools see it."""

    def patience(self, timeout: float | None) -> float | None:
        """Return the seconds that a caller waits, where ``None`` stands for ``ACQUIRE_TIMEOUT``."""
        ...

    @property
    def connections(self) -> ConnectionPool:
        """The pool of the alias."""
        ...

    @property
    def producers(self) -> ProducerPool:
        """The pool of the alias."""
        ...

    def check(self) -> None:
        """Raise if the broker of the alias is not the application's."""
        ...


class ConnectionsFace:
    """The connection pool of the alias, as ``app.pool``."""

    def __init__(self, alias: Pooled) -> None:
        self._alias = alias

    def acquire(self, block: bool = False, timeout: float | None = None) -> Any:
        """Lend a connection.

        :param block: wait, for ``ACQUIRE_TIMEOUT`` unless there is a *timeout*. Celery always does.
        :param timeout: seconds for everything together.
        :raises LimitExceeded: if all are in use; Celery makes an ``OperationalError`` of it.
        :raises OperationalError: if the broker cannot be reached.
        """
        alias = self._alias
        alias.check()
        if block or timeout is not None:
            timeout = alias.patience(timeout)
        try:
            return alias.connections.acquire(block and timeout is None, timeout)
        except LimitExceeded as error:
            # A connection that could not be opened in time is both, and Celery would take it for an exhausted pool.
            if not isinstance(error, OperationalError):
                raise
            raise as_operational(error, alias.using) from (error.__cause__ or error)

    @contextmanager
    def acquire_channel(
        self, block: bool = False, timeout: float | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """Lend a connection for a ``with`` block, with its default channel."""
        with self.acquire(block, timeout) as connection:
            yield connection, connection.default_channel

    def release(self, resource: Any) -> None:
        """Take a connection back."""
        resource.release()

    @property
    def limit(self) -> int | None:
        """``LIMIT``: Celery's ``broker_pool_limit`` has no effect."""
        return self._alias.connections.limit

    @property
    def connection(self) -> Any:
        """A connection with the alias's settings, which is not open: Celery asks it for the kind of its transport."""
        return self._alias.template

    def __getattr__(self, name: str) -> Any:
        return getattr(self._alias.connections, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of alias {self._alias.using!r}>"


class ProducersFace:
    """The producer pool of the alias, as ``app.producer_pool``. A producer takes a lease only if it needs one."""

    def __init__(self, alias: Pooled, connections: ConnectionsFace) -> None:
        self._alias = alias
        #: The connection pool.
        self.connections = connections

    def acquire(self, block: bool = False, timeout: float | None = None) -> TaskProducer:
        """Return a producer; nothing is lent yet, so this never waits.

        :param block: has no effect.
        :param timeout: seconds that each of its messages waits for a lease, in place of ``ACQUIRE_TIMEOUT``.
        """
        self._alias.check()
        return TaskProducer(self._alias, timeout)

    def release(self, resource: Any) -> None:
        """Take a producer back."""
        resource.release()

    @property
    def limit(self) -> int | None:
        """``LIMIT``: Celery's ``broker_pool_limit`` has no effect."""
        return self._alias.connections.limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._alias.producers, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of alias {self._alias.using!r}>"
