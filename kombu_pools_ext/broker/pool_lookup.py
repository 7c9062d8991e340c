"""Looking pools up by whatever names them, and keeping what was found."""

from __future__ import annotations

import sys
from typing import Any, Generic, TypeVar

from ..errors import PoolClosed
from ..masking import mask_url
from .pool_key import KEY_CACHE

__all__ = ["PoolLookup"]

#: The pools that are looked up.
P = TypeVar("P")


class PoolLookup(Generic[P]):
    """Finds pools, and has at hand what it found before."""

    def __init__(self) -> None:
        # By a URL or an alias, or by what stands for the key of a connection.
        self._names: dict[Any, P] = {}

    def __getitem__(self, resource: Any) -> P:
        try:
            if type(resource) is str:
                return self._names[resource]
            state = resource.__dict__
            cache = state[KEY_CACHE]
            # KeyCache.holds(), without a call.
            if cache.state is state and [*cache.values] == cache.seen:
                return self._names[cache.token]
        except (AttributeError, KeyError):
            pass  # new here
        if sys.is_finalizing():
            # Making a pool imports what its kind needs.
            name = mask_url(resource) if "://" in str(resource) else str(resource)
            raise PoolClosed(
                f"pool {name!r}: the interpreter is ending, and it cannot be made any more; publish in an exit handler "
                "(atexit), which comes before that"
            )
        # Taken now: what is looked up while names are forgotten is noted in the old dict, which nobody reads any more.
        names = self._names
        if isinstance(resource, str) and resource in names:
            return names[resource]
        return self._find(resource, names)

    def _find(self, resource: Any, names: dict[Any, P]) -> P:
        """Look *resource* up, and note it in *names*."""
        raise NotImplementedError

    def forget_names(self) -> None:
        """Look everything up anew: what it stands for may have changed."""
        self._names = {}
