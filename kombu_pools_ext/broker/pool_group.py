"""A group of pools: what a pool is looked up by, and how long it stays."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar, overload

import kombu.pools
from kombu.connection import Connection
from kombu.pools import PoolGroup as KombuPoolGroup

from ..errors import UnknownAlias
from . import hooks
from .base_pool import BasePool
from .pool_key import PoolKey, key_of, token_of
from .pool_lookup import PoolLookup

__all__ = ["PoolGroup", "get_limit", "global_limit", "use_global_limit"]

#: The pools that are looked up.
P = TypeVar("P")
#: What stands for one that is not there.
D = TypeVar("D")

#: ``PoolGroup(limit=use_global_limit)`` follows the global limit. kombu's own, for groups written for kombu.
use_global_limit: object = kombu.pools.use_global_limit


class _GlobalLimit:
    """The one limit of all pools that have none of their own."""

    #: Most connections a pool; ``None`` is unlimited.
    value: int | None = 10


#: Changed by :func:`kombu_pools_ext.set_limit` alone.
global_limit = _GlobalLimit()


def get_limit() -> int:
    """The global limit; 0 is unlimited, as in kombu."""
    return global_limit.value or 0


class PoolGroup(PoolLookup[P], KombuPoolGroup):
    """Pools by what they are for: looked up, and made when first asked for.

    A group of your own overrides :meth:`create`; in a race of two first look-ups it may be called twice, and
    one of the two pools is dropped unused, so it must only make a pool, not open anything.

    :param limit: of the pools made; ``None`` is unlimited, ``use_global_limit`` follows :func:`set_limit`.
    :param close_after_fork: kombu's; every pool of this library survives a fork.
    """

    def __init__(self, limit: Any = None, close_after_fork: bool = True) -> None:
        # Not kombu's __init__: it registers a fork hook that empties the group under its users.
        PoolLookup.__init__(self)
        self.limit = limit
        self.close_after_fork = close_after_fork
        # Pools that a reset took out of the group while somebody holds them: asked for again, they come back.
        self._former: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()
        # Who finds pools here under names of its own.
        self._lookups: weakref.WeakValueDictionary[int, PoolLookup[P]] = (
            weakref.WeakValueDictionary()
        )

    def create(self, resource: Any, limit: int | None) -> P:
        """Make the pool for *resource*."""
        raise NotImplementedError("PoolGroups must define ``create``")

    def key(self, resource: Any) -> Any:
        """What identifies the pool for *resource* in this group."""
        if isinstance(resource, Connection):
            return key_of(resource)
        # kombu's protocol for things that are not equal, and mean the same.
        own_key = getattr(resource, "__eqhash__", None)
        return resource if own_key is None else own_key()

    def resolve(self, resource: Any) -> Any:
        """What to hand to :meth:`create` for what was asked for."""
        return resource

    def _find(self, resource: Any, names: dict[Any, P]) -> P:
        key = self._key_for(resource)
        pool: P | None = dict.get(self, key)
        if pool is None:
            pool = self.__missing__(resource)
        if isinstance(resource, str):
            names[resource] = pool
        elif isinstance(resource, Connection):
            token = token_of(resource, key)
            if token is not None:
                names[token] = pool
        return pool

    def add_lookup(self, lookup: PoolLookup[P]) -> None:
        """Have *lookup* forget its names whenever this group does, as long as somebody has it."""
        self._lookups[id(lookup)] = lookup

    def _key_for(self, resource: Any) -> Any:
        """Return the key for *resource*, which may be a key already, because iterating over a group gives its keys."""
        return resource if isinstance(resource, PoolKey) else self.key(self.resolve(resource))

    def _adopt(self, key: Any, resource: Any, resolved: Any) -> P:
        pool: P | None = self._former.get(key)
        if pool is None or (isinstance(pool, BasePool) and pool.is_over):
            limit = get_limit() if self.limit is use_global_limit else self.limit
            pool = self._make(resource, resolved, limit)
            self._note_limit(pool, resolved)
        # Atomic: of two threads that come this way at once both get the one that was first.
        adopted: P = dict.setdefault(self, key, pool)
        try:
            self._former[key] = adopted
        except TypeError:
            # A group may hold anything, also what cannot be referred to weakly.
            pass
        return adopted

    def _make(self, resource: Any, resolved: Any, limit: int | None) -> P:
        """Make the pool for *resource*, of which :meth:`resolve` has made *resolved*."""
        return self.create(resolved, limit)

    def _note_limit(self, pool: Any, resource: Any) -> None:
        # A group with a limit of its own may hand out another group's pool, which goes on to follow the global limit.
        if isinstance(pool, BasePool) and self.limit is use_global_limit:
            pool.follows_global_limit = True

    def __missing__(self, resource: Any) -> P:
        if isinstance(resource, PoolKey):
            raise KeyError(resource)
        resolved = self.resolve(resource)
        return self._adopt(self.key(resolved), resource, resolved)

    # Names are forgotten after each change: before it, a look-up could note once more what is about to go.

    def __setitem__(self, resource: Any, pool: P) -> None:
        key = self._key_for(resource)
        dict.__setitem__(self, key, pool)
        self._former.pop(key, None)
        self.forget_names()

    def __delitem__(self, resource: Any) -> None:
        key = self._key_for(resource)
        dict.__delitem__(self, key)
        self._former.pop(key, None)
        self.forget_names()

    def __contains__(self, resource: Any) -> bool:
        try:
            return dict.__contains__(self, self._key_for(resource))
        except UnknownAlias:
            return False

    @overload
    def get(self, resource: Any, default: None = None) -> P | None: ...
    @overload
    def get(self, resource: Any, default: D) -> P | D: ...
    def get(self, resource: Any, default: Any = None) -> Any:
        """The pool for *resource* if there is one already, else *default*."""
        try:
            return dict.get(self, self._key_for(resource), default)
        except UnknownAlias:
            return default

    def clear(self) -> None:
        """Take all pools out of the group; a pool that somebody holds comes back when it is asked for again."""
        dict.clear(self)
        self.forget_names()

    def all_pools(self) -> list[P]:
        """The pools in the group, and those that a reset took out of it while somebody holds them."""
        pools: list[P] = list(self.values())
        known = set(map(id, pools))
        former = [reference() for reference in self._former.valuerefs()]
        return pools + [one for one in former if one is not None and id(one) not in known]

    def discard(self, resource: Any) -> None:
        """Take one pool out of the group, if it is there; it comes back as after :meth:`clear`."""
        dict.pop(self, self._key_for(resource), None)
        self.forget_names()

    def drop(self, resource: Any) -> None:
        """Remove one pool from the group; the next look-up makes a new one, even if this one is still in use."""
        key = self._key_for(resource)
        dict.pop(self, key, None)
        self._former.pop(key, None)
        self.forget_names()

    def drop_those(self, condition: Callable[[P], bool]) -> list[P]:
        """Remove the pools for which *condition* is true, and return them; the next look-up makes new ones."""
        dropped = list(filter(condition, self.all_pools()))
        gone = set(map(id, dropped))
        for kept in (self, self._former):
            for key, pool in list(kept.items()):
                if id(pool) in gone:
                    kept.pop(key, None)
        self.forget_names()
        return dropped

    def forget_names(self) -> None:
        """Look everything up anew: what it stands for may have changed."""
        super().forget_names()
        # After the group: what they find by then, they find anew.
        for reference in self._lookups.valuerefs():
            lookup = reference()
            if lookup is not None:
                lookup.forget_names()

    def follows_global_limit(self, pool: Any) -> bool:
        """Whether :func:`set_limit` governs *pool*."""
        if isinstance(pool, BasePool):
            return pool.follows_global_limit
        return self.limit is use_global_limit

    def __reduce_ex__(self, protocol: Any) -> Any:
        hooks.refuse_copies(
            f"group {type(self).__name__} of pools",
            "pass the group on; dict(group) has its pools by their keys",
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {', '.join(map(repr, self.values()))}>"
