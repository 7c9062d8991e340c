"""What a borrower sets on a leased connection: it holds for the time of the lease.

The lease shares the pooled connection's state, so that it *is* that connection. What is written there is noted, and
put back when the lease ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import kombu

if TYPE_CHECKING:
    from .driver import OpenConnection
    from .views import ConnectionView

__all__ = ["SETTINGS", "LentSetting", "Options", "names_of", "put_back"]

#: The attributes of a connection that say what it is like, and not what it is doing.
SETTINGS = (
    *("hostname", "userid", "password", "virtual_host", "port", "insist", "ssl", "login_method"),
    *("connect_timeout", "heartbeat", "transport_options", "transport_cls", "uri_prefix"),
    *("alt", "cycle", "failover_strategy", "credential_provider"),
)
_MISSING = object()
#: What kombu adds to a connection as it goes.
_BY_KOMBU = frozenset({"_closed", "_default_channel"})


class LentSetting:
    """One of :data:`SETTINGS`, of a leased connection."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, view: ConnectionView | None, owner: type[Any] | None = None) -> Any:
        if view is not None and self._name in view.__dict__:
            return view.__dict__[self._name]
        return getattr(kombu.Connection, self._name)

    def __set__(self, view: ConnectionView, value: Any) -> None:
        item = view.item
        state = item.__dict__
        item.altered.setdefault(self._name, state.get(self._name, _MISSING))
        item.untidy = True
        state[self._name] = value


class Options(dict[str, Any]):
    """A connection's transport options. kombu writes a retry policy into them, a borrower writes what it likes.

    :param item: the connection.
    """

    def __init__(self, options: Any, item: OpenConnection) -> None:
        super().__init__(options)
        self._item = item
        self._before: dict[str, Any] | None = None

    def note(self) -> None:
        """They are about to be changed."""
        if self._before is None:
            self._before = dict(self)
        self._item.untidy = True

    def put_back(self) -> None:
        """Be as before."""
        if self._before is not None:
            dict.clear(self)
            dict.update(self, self._before)
            self._before = None

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


def _noted(change: Any) -> Callable[..., Any]:
    def noted(options: Options, *args: Any, **kwargs: Any) -> Any:
        options.note()
        return change(options, *args, **kwargs)

    return noted


for _name in (
    "__setitem__",
    "__delitem__",
    "__ior__",
    "update",
    "setdefault",
    "pop",
    "popitem",
    "clear",
):
    setattr(Options, _name, _noted(getattr(dict, _name)))

_names: dict[frozenset[str], frozenset[str]] = {}


def names_of(item: OpenConnection) -> frozenset[str]:
    """The attributes that *item*, which has just been opened, has or may get from the pool itself."""
    names = _BY_KOMBU.union(item.__dict__, type(item).__annotations__)
    # One set for all connections that are alike.
    return _names.setdefault(names, names)


def put_back(item: OpenConnection) -> None:
    """Forget what a borrower has set on *item*."""
    state = item.__dict__
    for name, value in item.altered.items():
        if value is _MISSING:
            state.pop(name, None)
        else:
            state[name] = value
    item.altered.clear()
    options = item.transport_options
    if isinstance(options, Options):
        options.put_back()
    for name in state.keys() - item.own_names:
        del state[name]
    # Whoever ends the lease is noted there for that time alone.
    item.size = len(state) - ("tidied_by" in state)
