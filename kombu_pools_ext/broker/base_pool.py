"""What a connection pool and a producer pool have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal

from ..engine.stats import Drained, PoolStats
from . import hooks
from .lazy_attribute import LazyAttribute
from .validate import check_flag, valid_limit, valid_seconds

__all__ = ["BasePool"]


class BasePool:
    """The interface of kombu's pools over an engine."""

    #: Made at the first use.
    engine: Any
    _closed: Any

    #: The hooks that its class overrides.
    _hooks: frozenset[str] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__module__.startswith(f"{__package__}."):
            hooks.refuse_what_nobody_calls(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in hooks.CALLED:
            hooks.refuse_on_one_pool(self.name, name)
        object.__setattr__(self, name, value)

    def __init__(self, preload: Any = None, close_after_fork: Any = None) -> None:
        # kombu's arguments: nothing is preloaded (MIN_IDLE does that), and every pool survives a fork.
        self.preload = preload or 0
        self.close_after_fork = True if close_after_fork is None else close_after_fork
        #: Whether :func:`kombu_pools_ext.set_limit` governs this pool.
        self.follows_global_limit = False

    @property
    def name(self) -> str:
        """What errors, logs and tables call the pool: as a rule the URI of its broker, without the password."""
        return str(self.engine.name)

    @property
    def is_over(self) -> bool:
        """Whether it was closed, or what it draws on."""
        engine = LazyAttribute.of(self, "engine")
        return self._closed or (engine is not None and engine.closed)

    @property
    def limit(self) -> int | None:
        """Most leases at a time; ``None`` is unlimited. Setting it resizes, and ends following the global limit."""
        return self._get_limit()

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self.resize(limit)

    def _get_limit(self) -> int | None:
        raise NotImplementedError

    def resize(
        self,
        limit: int | None,
        force: bool = False,
        ignore_errors: bool = False,
        reset: bool = False,
    ) -> None:
        """Set the limit, while the pool is in use.

        :param limit: most leases at a time; 0 or ``None`` is unlimited.
        :param force: go below what is lent; what is over the limit is closed as it comes back.
        :param ignore_errors: as *force*.
        :param reset: close the old connections too: the idle ones now, the lent ones as they come back.
        :raises TypeError, ValueError: if *limit* is not valid.
        :raises RuntimeError: if more is lent than *limit*; nothing has changed then.
        """
        self.take_limit(valid_limit(limit), force=force or ignore_errors, reset=reset)
        self.follows_global_limit = False

    def take_limit(self, limit: int | None, *, force: bool, reset: bool) -> None:
        """Do as :meth:`resize` does; the pool goes on to follow the global limit, if it does."""
        with self._collecting():
            self._resize(limit, force=force)
        if reset:
            self.force_close_all(close_pool=False)
        # As kombu: it fills its queue anew.
        self.setup()

    def _resize(self, limit: int | None, *, force: bool) -> None:
        raise NotImplementedError

    def setup(self) -> None:
        """Kombu's; does nothing. Called when the pool is made, and when it is resized."""

    def _collecting(self) -> contextlib.AbstractContextManager[None]:
        """Within, ``collect_resource()`` is told of what this thread closes, if a subclass overrides it."""
        return contextlib.nullcontext()

    @property
    def _resource(self) -> hooks.QueueStandIn:
        # kombu's name for its queue.
        return hooks.QueueStandIn(
            self.name, lambda: 0 if self.limit is None else max(0, self.limit - self.lent)
        )

    @_resource.setter
    def _resource(self, queue: Any) -> None:
        hooks.refuse_setting(self.name, "_resource")

    @property
    def _dirty(self) -> hooks.LentStandIn:
        # kombu's name for the set of what is lent.
        return hooks.LentStandIn(self.name, self.lent)

    @_dirty.setter
    def _dirty(self, lent: Any) -> None:
        hooks.refuse_setting(self.name, "_dirty")

    def __reduce_ex__(self, protocol: Any) -> Any:
        hooks.refuse_copies(
            f"pool {self.name!r}",
            "pass the pool on, or make another one with the same arguments where it is needed",
        )

    @property
    def lent(self) -> int:
        """Leases out at the moment."""
        engine = LazyAttribute.of(self, "engine")
        return 0 if engine is None else engine.lent

    def force_close_all(self, close_pool: bool = True) -> Drained:
        """Close what is idle now, and what is lent when it comes back.

        :param close_pool: refuse every later acquire, and fail those that wait.
        :returns: how many were closed, and how many are still lent.
        :raises TypeError: for a *close_pool* that is meant as a time-out; :meth:`drain` has one.
        """
        check_flag("close_pool", close_pool, "drain(timeout={})")
        if close_pool:
            closed: Drained = self.engine.close()
            return closed
        engine = LazyAttribute.of(self, "engine")
        return Drained(0, 0) if engine is None else engine.drain()

    def suspend(self, mode: Literal["fail", "wait"] = "wait") -> None:
        """Lend and open nothing until :meth:`resume`, as :meth:`.Pools.suspend`."""
        self.engine.suspend(mode)

    def resume(self) -> None:
        """End :meth:`suspend`, as :meth:`.Pools.resume`."""
        self.engine.resume()

    def wait_ready(self, timeout: float) -> None:
        """Wait until ``MIN_IDLE`` connections are open, and at least one, as :meth:`.Pools.wait_ready`."""
        self.engine.wait_ready(valid_seconds(timeout))

    def drain(self, timeout: float | None = None) -> Drained:
        """Close all connections, and return how many were closed and are still lent, as :meth:`.Pools.drain`."""
        drained: Drained = self.engine.drain(None if timeout is None else valid_seconds(timeout))
        return drained

    def begin_drain(self) -> Callable[[float | None], Drained]:
        """The first half of :meth:`drain`.

        :returns: the second half, which takes a deadline of ``time.monotonic``, or ``None`` not to wait.
        """
        finish: Callable[[float | None], Drained] = self.engine.begin_drain()
        return finish

    def stats(self) -> PoolStats:
        """A snapshot of the pool, and its totals."""
        stats: PoolStats = self.engine.stats()
        return stats

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {self.engine.describe()}>"
