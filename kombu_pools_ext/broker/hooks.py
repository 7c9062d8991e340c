"""The methods that kombu's pools call and a subclass may override: called here where kombu calls them.

Each is called in the thread that acquires, releases or closes, with no lock held; none in a thread of the pool.
``docs/explanation/hooks.md`` says when. A hook that could not be called is refused where the subclass is defined.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import kombu
from kombu.exceptions import LimitExceeded

from ..engine.opener import THREAD
from ..engine.threads import spawn_thread
from ..errors import PoolError, PoolExhausted
from .leased_connection import LeasedConnection
from .soundness import verdict_on

__all__ = [
    "CALLED",
    "HOOKS",
    "HookedView",
    "LentStandIn",
    "QueueStandIn",
    "as_class_of",
    "as_limit_exceeded",
    "hooks_of",
    "refuse_copies",
    "refuse_foreign",
    "refuse_on_one_pool",
    "refuse_setting",
    "refuse_what_nobody_calls",
    "spawn_but_for_openings",
]

#: The methods that only a pool calls.
CALLED = ("new", "setup", "prepare", "release_resource", "close_resource", "collect_resource")
#: The methods that a subclass may override, of both kinds of pools.
HOOKS = (*CALLED, "acquire", "release", "replace")
#: What kombu's pools have and these have not, with what to do instead.
_NOT_THERE = {
    "_add_when_empty": "there is no queue to fill; override new() to make another connection",
    "_shrink_down": "there is no queue to take from; override collect_resource() to be told of what is closed",
    "_resource": "there is no queue; stats() has the numbers",
    "_dirty": "what is lent belongs to its borrowers; lent and stats() have the numbers",
}


def hooks_of(kind: type[Any], base: type[Any]) -> frozenset[str]:
    """The names of the hooks that *kind*, a subclass of *base*, overrides."""
    return frozenset(name for name in HOOKS if getattr(kind, name) is not getattr(base, name))


def refuse_what_nobody_calls(kind: type[Any]) -> None:
    """Refuse a subclass that overrides something in vain.

    :raises TypeError: with every problem.
    """
    problems = [
        f"{name}: {instead}" for name, instead in _NOT_THERE.items() if name in kind.__dict__
    ]
    for name in HOOKS:
        hook = kind.__dict__.get(name)
        if inspect.iscoroutinefunction(hook) or inspect.isasyncgenfunction(hook):
            problems.append(f"{name}: it is asynchronous, and nobody would await it; make it a def")
    own = kind.__dict__.get("LimitExceeded")
    if own is not None:
        try:
            _limit_class(PoolExhausted, own)
        except TypeError as error:
            problems.append(f"LimitExceeded: it must be a class of exceptions ({error})")
    if problems:
        raise TypeError(
            f"{kind.__module__}.{kind.__qualname__} overrides what its pool never uses: "
            + "; ".join(problems)
        )


def refuse_on_one_pool(pool: str, name: str) -> None:
    """Raise for a hook that is set on one pool, where it would not be called.

    :raises AttributeError: always.
    """
    raise AttributeError(
        f"pool {pool!r}: {name} is called on the class of a pool, and not where it is set on one pool; define a "
        f"subclass with a {name} of its own"
    )


# -- errors ---------------------------------------------------------------------------------------------

_limit_classes: dict[tuple[type[Any], type[Any]], type[Any]] = {}


def _limit_class(ours: type[Any], own: Any) -> type[Any]:
    if not isinstance(own, type) or not issubclass(own, Exception):
        raise TypeError(f"{own!r} is none")
    if issubclass(ours, own):
        return ours
    made = _limit_classes.get((ours, own))
    if made is None:
        made = type(own.__name__, (ours, own), {"__module__": own.__module__})
        _limit_classes[ours, own] = made
    return made


def as_limit_exceeded(own: type[Any], error: LimitExceeded) -> LimitExceeded:
    """*error*, of a class that is also *own*: what a subclass of a pool has as its ``LimitExceeded``."""
    kind = _limit_class(type(error), own)
    if not issubclass(type(error), kind):
        made: LimitExceeded = kind.__new__(kind, *error.args)
        made.__dict__.update(error.__dict__)
        made.__cause__ = error.__cause__
        return made
    return error


# -- kombu's queue, which is not there --------------------------------------------------------------------


class QueueStandIn:
    """Stands where kombu's pools have the queue of what is free: it has numbers, and takes nothing.

    :param free: returns how many more may be lent now.
    """

    def __init__(self, name: str, free: Callable[[], int]) -> None:
        self._name = name
        self._free = free

    def qsize(self) -> int:
        """How many more may be lent now; 0 of an unlimited pool."""
        return self._free()

    def empty(self) -> bool:
        """Whether no more may be lent now."""
        return not self._free()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"pool {self._name!r} has no queue, so there is no {name} of it: {_NOT_THERE['_resource']}; "
            "acquire() and release() are the way in and out"
        )


class LentStandIn:
    """Stands where kombu's pools have the set of what is lent: it has a length, and gives nothing away."""

    def __init__(self, name: str, count: int) -> None:
        self._name = name
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"pool {self._name!r} has no set of what is lent, so there is no {name} of it: {_NOT_THERE['_dirty']}"
        )


def refuse_setting(pool: str, name: str) -> None:
    """Raise for an assignment to an attribute that kombu's pools have.

    :raises AttributeError: always.
    """
    raise AttributeError(f"pool {pool!r} has no {name} to be set: {_NOT_THERE[name]}")


def refuse_copies(what: str, instead: str) -> Any:
    """Raise for a copy or a pickle of *what*.

    :raises TypeError: always.
    """
    raise TypeError(
        f"{what} cannot be copied or pickled, because its connections belong to this process; {instead}"
    )


# -- leases of pools with hooks ---------------------------------------------------------------------------


def spawn_but_for_openings(work: Callable[[], None], name: str) -> bool:
    """Start a thread, but none that opens: then a borrower opens in its own thread, and ``new`` is called there."""
    return name != THREAD and spawn_thread(work, name)


class HookedView(LeasedConnection):
    """A lent connection of a pool whose class overrides hooks."""

    __slots__ = ("_is_ending",)

    #: Whether a hook is being called with it: it may release it itself.
    _is_ending: bool

    def release(self, error: BaseException | None = None) -> None:
        """Give the connection back by the pool's own ``release`` or ``replace``; the second time do nothing."""
        entry = self.entry
        if entry is None or entry.lender is None:
            return
        verdict = verdict_on(entry.item.pooled_session, error) or getattr(self, "_verdict", None)
        if getattr(self, "_is_ending", False):
            self._verdict = verdict
        else:
            self._pass_on(verdict)

    close = release

    def end(self, broken: str | None = None) -> None:
        # A producer's lease ends.
        if not self.ended and not getattr(self, "_is_ending", False):
            self._pass_on(broken)

    def _pass_on(self, verdict: str | None) -> None:
        self._verdict = verdict
        if verdict is None:
            self._pool.release(self)
        else:
            self._pool.replace(self)

    def give_back(self, otherwise: str | None = None) -> None:
        """Call the hook for the end of a loan, and end the loan.

        :param otherwise: why the connection must not be lent again, unless another reason is known.
        """
        entry = self.entry
        if entry is None or entry.lender is None:
            return
        verdict = getattr(self, "_verdict", None) or otherwise
        if getattr(self, "_is_ending", False):
            # A hook that looks at the connection has found that it must go.
            self._verdict = verdict
            return
        if verdict is None and not entry.item.pooled_session.is_sound():
            verdict = "broken"
        self._is_ending = True
        try:
            if verdict is None:
                self._pool.release_resource(self)
                verdict = getattr(self, "_verdict", None)
            if verdict is not None:
                self._pool.close_resource(self)
        except BaseException as error:
            verdict = verdict or verdict_on(entry.item.pooled_session, error)
            raise
        finally:
            LeasedConnection.end(self, verdict)


#: By class of a pooled connection, the class of its leases.
_view_types: dict[type[Any], type[HookedView]] = {}


def as_class_of(view: HookedView, item: Any) -> HookedView:
    """*view* as a lease whose class is also that of the connection that the pool's ``new`` has made."""
    kinds = [kind for kind in type(item).__bases__ if not hasattr(kind, "own_names")]
    if kinds and kinds != [kombu.Connection]:
        if type(item) not in _view_types:
            _view_types[type(item)] = type(
                type(item).__name__, (HookedView, *kinds), {"__slots__": ()}
            )
        view.__class__ = _view_types[type(item)]
    return view


def refuse_foreign(pool: str, got: object) -> PoolError:
    """The error for an ``acquire`` of a pool's own that returned something else than its ``super().acquire()``."""
    return PoolError(
        f"pool {pool!r}: its acquire() returned {type(got).__name__}, which is no lease of it; producers need what "
        "super().acquire() returns"
    )
