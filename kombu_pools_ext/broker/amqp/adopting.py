"""Give an object of an application's class the pool's behaviour as well: it gets a subclass of both classes.

It stays the object that its owner knows, with the attributes and the methods that it has.
"""

from __future__ import annotations

from typing import Any

__all__ = ["change_class", "subclass"]


def subclass(kind: type[Any], base: type[Any], known: dict[type[Any], type[Any]]) -> type[Any]:
    """Return the class that is *base* before it is *kind*.

    :param known: the classes that exist already, by *kind*; a new one is added.
    """
    found = known.get(kind)
    if found is None:
        # Two threads may do it at once. The first class stays, because others ask for exactly that one.
        made = type(kind.__name__, (base, kind), {"__module__": kind.__module__})
        found = known.setdefault(kind, made)
    return found


def change_class(thing: Any, kind: type[Any]) -> None:
    """Make *thing* one of *kind*, a subclass of its class.

    :raises TypeError: if Python does not allow it, because objects of the two classes differ in memory.
    """
    thing.__class__ = kind
    # py-amqp keeps methods of its objects in them, which are the methods of the class that they were made as.
    for kept in (thing.__dict__, getattr(thing, "_callbacks", {})):
        for name, method in tuple(kept.items()):
            if getattr(method, "__self__", None) is thing:
                kept[name] = getattr(thing, method.__name__, method)
