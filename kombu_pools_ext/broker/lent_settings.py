"""What a leased connection has in common with the pooled one, and what a borrower sets of it.

The lease asks the pooled connection for all that kombu knows of a connection, so that it *is* that connection. What is
set of its settings holds for the time of the lease: it is noted, and put back at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import kombu

from ..engine import Lease

__all__ = [
    "MISSING",
    "SETTINGS",
    "STATE",
    "Common",
    "LentSetting",
    "Options",
    "put_back_attributes",
    "wrappers_among",
]

#: The attributes of a connection that say what it is doing. kombu's code sets them.
STATE = ("_closed", "_connection", "_default_channel", "_transport")

#: The attributes of a connection that say what it is like, and not what it is doing.
SETTINGS = (
    *("hostname", "userid", "password", "virtual_host", "port", "insist", "ssl", "login_method"),
    *("connect_timeout", "heartbeat", "transport_options", "transport_cls", "uri_prefix"),
    *("alt", "cycle", "failover_strategy", "credential_provider"),
    *("declared_entities", "_initial_params", "_failover_strategy"),
)
#: Stands for what an attribute was that was not there.
MISSING = object()


class Alterable(Protocol):
    """A pooled connection, as far as its borrower may set something of it."""

    #: What its attributes were before that.
    altered: dict[str, Any]
    #: Whether something was done that may outlive the lease.
    untidy: bool


class Common:
    """An attribute of a leased connection that is the pooled one's.

    :param ended: what a lease that has ended shows, by name.
    """

    __slots__ = ("_ended", "_name")

    def __init__(self, name: str, ended: dict[str, Any]) -> None:
        self._name = name
        self._ended = ended

    def __get__(self, view: Lease[Any] | None, owner: type[Any] | None = None) -> Any:
        if view is None:
            return self
        entry = view.entry
        # In a forked child, the state of what the parent had lent raises by itself.
        if entry is not None and (entry.lender is not None or entry.inherited):
            state = entry.item.__dict__
            if self._name in state:
                return state[self._name]
        elif self._name in self._ended:
            value = self._ended[self._name]
            return copy.copy(value) if isinstance(value, dict | list | set) else value
        return getattr(kombu.Connection, self._name)

    def __set__(self, view: Lease[Any], value: Any) -> None:
        view.item.__dict__[self._name] = value

    def __delete__(self, view: Lease[Any]) -> None:
        try:
            del view.item.__dict__[self._name]
        except KeyError:
            raise AttributeError(self._name) from None


class LentSetting(Common):
    """One of :data:`SETTINGS`, of a leased connection."""

    __slots__ = ()

    def __set__(self, view: Lease[Any], value: Any) -> None:
        self._note(view.item)
        super().__set__(view, value)

    def __delete__(self, view: Lease[Any]) -> None:
        self._note(view.item)
        super().__delete__(view)

    def _note(self, item: Alterable) -> None:
        item.altered.setdefault(self._name, item.__dict__.get(self._name, MISSING))
        item.untidy = True


class Options(dict[str, Any]):
    """A connection's transport options. kombu writes a retry policy into them, a borrower writes what it likes.

    :param item: the connection.
    """

    def __init__(self, options: Any, item: Alterable) -> None:
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


def wrappers_among(view: Any) -> dict[str, Any]:
    """What its borrower has set on *view* in the place of a method."""
    kind = type(view)
    return {
        name: value for name, value in view.__dict__.items() if callable(getattr(kind, name, None))
    }


def put_back_attributes(state: dict[str, Any], altered: dict[str, Any]) -> None:
    """Put into *state* again what was there before it was altered, by name, and forget that."""
    for name, value in altered.items():
        if value is MISSING:
            state.pop(name, None)
        else:
            state[name] = value
    altered.clear()
