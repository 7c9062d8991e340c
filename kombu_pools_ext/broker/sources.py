"""Where the connections of a producer pool come from: a pool of ours, or another one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from ..engine import Lease, Pool, PoolOptions, Share
from ..engine.stats import Drained
from . import hooks
from .connections import ConnectionPool
from .foreign import ForeignDriver
from .kombu_errors import KombuErrors
from .leased_connection import LeasedConnection

__all__ = ["Source", "source_of"]


class Source(Protocol):
    """What a producer pool asks of the connections that it draws on."""

    #: The attribute of the producer pool that has its limit: its share of another engine, or an engine of its own.
    limited_by: str
    #: Whether a producer stays with its connection between two leases, and what else a lease leaves is tidied up.
    keeps_producers: bool

    @property
    def kind(self) -> type[Lease[Any]]:
        """The class of the leases."""
        ...

    @property
    def is_straight(self) -> bool:
        """Whether leases are those of the engine, with no hooks in between."""
        ...

    @property
    def has_plain_end(self) -> bool:
        """Whether the end of a lease calls no hooks."""
        ...

    @property
    def name(self) -> str:
        """What errors, logs and tables call the pool of producers."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether there are no connections any more, because their pool was closed."""
        ...

    @property
    def pending(self) -> dict[int, Any]:
        """By thread that is in ``acquire()``, the lease that the pool of connections is to return there."""
        ...

    def make_engine(self, limit: int | None) -> Pool[Any]:
        """Return what lends."""
        ...

    def make_share(self, limit: int | None) -> Share | None:
        """Return the share of the engine's leases that the pool of producers has; ``None`` if it has all."""
        ...

    def resize(self, engine: Pool[Any], bounded: Any, limit: int | None, *, force: bool) -> None:
        """Set the limit of *bounded*, which is what :attr:`limited_by` names."""
        ...

    def lent(self, engine: Pool[Any], bounded: Any) -> int:
        """How many leases there are within the limit of *bounded*."""
        ...

    def lease(
        self,
        block: bool,
        timeout: float | None,
        ask: Callable[[], Any],
        handing_down: Callable[[], AbstractContextManager[None]],
    ) -> Any:
        """Take a lease where it is not :attr:`is_straight`.

        :param ask: takes it from the engine.
        :param handing_down: within, the pool of connections takes it with the share of the pool of producers.
        """
        ...

    def collecting(self, told: Callable[[Any], object]) -> AbstractContextManager[None]:
        """Within, *told* is called with each connection before this thread closes it."""
        ...

    def close_connections(self, drain: Callable[[], Drained]) -> Drained:
        """Close the idle connections now, and the lent ones as they come back.

        :param drain: does so by the engine.
        """
        ...

    def reads_no_more(self, item: Any) -> None:
        """Have *item* not keep the gate shut: nobody reads there any more that the broker takes messages again."""
        ...


class OwnConnections:
    """A pool of ours: a producer's lease is one of that pool, and bounded by a share of it."""

    __slots__ = ("_connections",)

    limited_by = "_share"
    keeps_producers = True

    def __init__(self, connections: ConnectionPool) -> None:
        self._connections = connections

    @property
    def kind(self) -> type[Lease[Any]]:
        return self._connections.kind

    @property
    def is_straight(self) -> bool:
        return not self._connections.has_hooks

    has_plain_end = is_straight

    @property
    def name(self) -> str:
        return self._connections.name

    @property
    def is_over(self) -> bool:
        return self._connections.is_over

    @property
    def pending(self) -> dict[int, Any]:
        return self._connections.pending

    def make_engine(self, limit: int | None) -> Pool[Any]:
        self._connections.lends_producers = True
        return self._connections.engine

    def make_share(self, limit: int | None) -> Share | None:
        return Share(limit, self._connections.publishing)

    def resize(self, engine: Pool[Any], bounded: Any, limit: int | None, *, force: bool) -> None:
        engine.resize_share(bounded, limit)

    def lent(self, engine: Pool[Any], bounded: Any) -> int:
        return engine.lent_of(bounded)

    def lease(
        self,
        block: bool,
        timeout: float | None,
        ask: Callable[[], Any],
        handing_down: Callable[[], AbstractContextManager[None]],
    ) -> Any:
        # As kombu: by its own acquire(), which takes the lease with this pool's share of them.
        with handing_down():
            lease: Any = self._connections.acquire(block, timeout)
        if not isinstance(lease, LeasedConnection):
            raise hooks.refuse_foreign(self.name, lease)
        return lease

    def collecting(self, told: Callable[[Any], object]) -> AbstractContextManager[None]:
        return self._connections.collecting(told)

    def close_connections(self, drain: Callable[[], Drained]) -> Drained:
        return self._connections.force_close_all(close_pool=False)

    def reads_no_more(self, item: Any) -> None:
        if self._connections.publishing.reason is not None:
            self._connections.publishing_unblocked(item)


class ForeignConnections:
    """A pool that is not ours, kombu's own or anything with its interface: an engine of ours lends what it lends."""

    __slots__ = ("_driver", "name", "pending")

    limited_by = "engine"
    keeps_producers = False
    kind: type[Lease[Any]] = Lease
    is_straight = False
    has_plain_end = True
    is_over = False

    def __init__(self, connections: Any) -> None:
        self._driver = ForeignDriver(connections)
        self.name = f"producers of {connections!r}"
        self.pending: dict[int, Any] = {}

    def make_engine(self, limit: int | None) -> Pool[Any]:
        return Pool(
            self._driver,
            name=self.name,
            limit=limit,
            options=PoolOptions(keep=False),
            errors=KombuErrors(),
        )

    def make_share(self, limit: int | None) -> Share | None:
        return None

    def resize(self, engine: Pool[Any], bounded: Any, limit: int | None, *, force: bool) -> None:
        engine.resize(limit, force=force)

    def lent(self, engine: Pool[Any], bounded: Any) -> int:
        return engine.lent

    def lease(
        self,
        block: bool,
        timeout: float | None,
        ask: Callable[[], Any],
        handing_down: Callable[[], AbstractContextManager[None]],
    ) -> Any:
        if block or timeout is not None:
            return ask()
        # The other pool is asked here: an opening in the background would wait for it.
        with self._driver.not_waiting():
            return ask()

    def collecting(self, told: Callable[[Any], object]) -> AbstractContextManager[None]:
        return nullcontext()

    def close_connections(self, drain: Callable[[], Drained]) -> Drained:
        return drain()

    def reads_no_more(self, item: Any) -> None:
        pass


def source_of(connections: Any) -> Source:
    """Return what draws on *connections*, a pool of connections of any kind."""
    if isinstance(connections, ConnectionPool):
        return OwnConnections(connections)
    return ForeignConnections(connections)
