"""Entries, and the right to use one."""

from __future__ import annotations

import os
import traceback
import weakref
from collections.abc import MutableMapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from .fork import child_begins, mark
from .weakrefs import WeakPlaces

__all__ = ["Borrower", "Entry", "Gate", "Lease", "Lender", "Share", "ours", "outside", "stack_of"]

T = TypeVar("T")


class _OursByFile(dict[str, bool]):
    """Whether a source file is one of this distribution's packages, whose frames name no borrower."""

    def __missing__(self, filename: str) -> bool:
        root = Path(__file__).parents[2]
        packages = ("kombu_pools_ext", "django_app", "flask_ext")
        mine = any(filename.startswith(f"{root / package}{os.sep}") for package in packages)
        self[filename] = mine
        return mine


#: By file name; a dict, for the hot path.
ours = _OursByFile()


def outside(frame: FrameType | None) -> FrameType | None:
    """The nearest frame, from *frame* up, that is not ours."""
    while frame is not None and ours[frame.f_code.co_filename]:
        frame = frame.f_back
    return frame


def stack_of(frame: FrameType) -> traceback.StackSummary:
    """The stack that led to *frame*, outermost first."""
    stack = traceback.StackSummary.extract(traceback.walk_stack(frame), lookup_lines=False)
    stack.reverse()
    return stack


class Borrower(NamedTuple):
    """Who took a lease: the line outside this distribution that asked, and its stack where that is wanted."""

    code: CodeType
    instruction: int
    stack: traceback.StackSummary | None = None

    def __str__(self) -> str:
        line = self.code.co_firstlineno
        for start, end, number in self.code.co_lines():
            if start <= self.instruction < end and number is not None:
                line = number
        return f"{self.code.co_filename}:{line} in {self.code.co_qualname}"

    def details(self) -> str:
        """The borrower's whole stack where it was kept, else its line."""
        if self.stack is None:
            return str(self)
        return f"{self}\n{''.join(self.stack.format())}".rstrip()


class Lender(Protocol):
    """What a lease, and what it lends, asks of the pool that they belong to."""

    @property
    def name(self) -> str:
        """Stands in errors and log lines."""
        ...

    def release(self, lease: Any, broken: str | None = None) -> None:
        """Take *lease* back."""
        ...

    def dropped(self, entry: Any) -> None:
        """Note that the lease of *entry* was collected. Called by a finalizer: it must not wait."""
        ...

    def lease_error(self, entry: Any) -> Exception:
        """Return the error for the use of a lease that has ended; *entry* is what it still refers to, if anything."""
        ...


#: Never written to.
_NOBODY: MutableMapping[Any, str] = {}


class Gate:
    """What some of a pool's leases have to pass: those whose share has this gate. Shut, their borrowers wait.

    It is shut as long as one of those who shut it has not opened it again. To be used under the pool's lock.
    """

    __slots__ = ("_shut_by", "reason")

    def __init__(self) -> None:
        #: Why it is shut; ``None`` if it is open.
        self.reason: str | None = None
        # Weakly: whoever is gone does not keep it shut. Made when it is first needed, for most pools never need it.
        self._shut_by: MutableMapping[Any, str] = _NOBODY

    def shut(self, who: Any, reason: str) -> None:
        """*who* shuts it, because of *reason*."""
        if self._shut_by is _NOBODY:
            self._shut_by = weakref.WeakKeyDictionary()
        self._shut_by[who] = self.reason = reason

    def open(self, who: Any) -> None:
        """*who* opens it; it stays shut as long as somebody else keeps it so."""
        self._shut_by.pop(who, None)
        self.reason = next(iter(self._shut_by.values()), None)

    def open_but_for(self, some: list[Any] | None) -> None:
        """Let only *some* keep it shut, or anybody who still exists."""
        for who in list(self._shut_by):
            if some is not None and who not in some:
                del self._shut_by[who]
        self.reason = next(iter(self._shut_by.values()), None)

    def open_for_all(self) -> None:
        """Open it, whoever shut it."""
        self._shut_by.clear()
        self.reason = None


class Share:
    """A bound on some of a pool's leases: those that were asked for with this share.

    It belongs to the pool, which changes it under its own lock.
    """

    __slots__ = ("__weakref__", "_limit", "gate", "lent")

    def __init__(self, limit: int | None = None, gate: Gate | None = None) -> None:
        self._limit = limit
        self.gate = gate
        #: What is lent with it. Weakly: only a lease holds what is lent.
        self.lent: WeakPlaces[Entry[Any]] = WeakPlaces()

    @property
    def limit(self) -> int | None:
        """Most leases at a time; ``None`` is any number. Set by :meth:`Pool.resize_share`."""
        return self._limit

    def set_limit(self, limit: int | None) -> None:
        """Set the bound; to be called by the pool, which wakes those who may go on."""
        self._limit = limit

    @property
    def room(self) -> int | None:
        """How many more leases its limit leaves; ``None`` is any number."""
        return None if self._limit is None else self._limit - len(self.lent)

    def has_room(self) -> bool:
        """Whether one more lease fits, now."""
        if self.gate is not None and self.gate.reason is not None:
            return False
        return self._limit is None or len(self.lent) < self._limit

    @property
    def blocked(self) -> str | None:
        """Why its gate is shut; ``None`` if it is open, or there is none."""
        return None if self.gate is None else self.gate.reason


class Entry(Generic[T]):
    """An item and what the pool knows of it.

    The pool changes it, under its lock. While it is lent its lease holds it, and nothing else does: when the lease is
    collected, it is.
    """

    __slots__ = (
        "__weakref__",
        "code",
        "expires_at",
        "fresh_until",
        "generation",
        "idle_span",
        "inherited",
        "instruction",
        "item",
        "keep_at",
        "keep_every",
        "lender",
        "loan",
        "needs_check",
        "number",
        "reported",
        "share",
        "stack",
        "taken_at",
        "used_at",
    )

    def __init__(
        self,
        item: T,
        *,
        number: int,
        generation: int,
        now: float,
        expires_at: float,
        idle_span: float,
        keep_every: float | None = None,
    ) -> None:
        self.item = item
        self.number = number
        self.generation = generation
        self.used_at = now
        self.expires_at = expires_at
        #: Until then it is lent without a check; 0 if another one broke, and the cause may have broken this one too.
        self.fresh_until = 0.0
        #: Seconds without use after which it expires.
        self.idle_span = idle_span
        #: Seconds between two keep-alives, and when the next one is due.
        self.keep_every = keep_every
        self.keep_at = float("inf") if keep_every is None else now + keep_every
        self.needs_check = False
        #: Whom it was lent by; ``None`` while it is not lent.
        self.lender: Lender | None = None
        #: Set in a forked child: the item belongs to the parent.
        self.inherited = False
        #: Counts the loans, so that a deferred release of an earlier one is told apart.
        self.loan = 0
        #: The share that it is lent with, if there is one.
        self.share: Share | None = None
        #: When it was lent; kept up where loans have a bound.
        self.taken_at = now
        #: The last loan that was reported as a leak.
        self.reported = 0
        #: Where the lease was asked for: code object, instruction and, if wanted, the stack.
        self.code: CodeType | None = None
        self.instruction = -1
        self.stack: traceback.StackSummary | None = None

    @property
    def borrower(self) -> Borrower | None:
        """Who holds it, if that is known."""
        return Borrower(self.code, self.instruction, self.stack) if self.code else None

    def __del__(self) -> None:
        # Collected while it was lent, and its lease with it. Runs in any thread, between any two steps, perhaps
        # inside the pool's own critical section: it may only defer a release, by which the pool takes it back. An
        # entry whose __init__ was interrupted may have no lender yet.
        lender = getattr(self, "lender", None)
        if lender is not None:
            lender.dropped(self)


class Lease(Generic[T]):
    """The right to use one entry, once. Whoever holds the lease is the borrower.

    A host may have a subclass lent, so that what the borrower holds *is* the lease. The pool makes it without
    arguments, and sets what is named here; the host adds what else it needs.
    """

    __slots__ = ("entry", "lender")

    #: The pool that it belongs to, also after its end.
    lender: Lender
    #: What it lends; ``None`` after its end.
    entry: Entry[T] | None

    @property
    def ended(self) -> bool:
        """Whether the lease was released, or belongs to the process that this one was forked from."""
        entry = self.entry
        return entry is None or entry.lender is None

    @property
    def item(self) -> T:
        """The item lent.

        :raises LeaseError: if the lease has ended.
        """
        if not mark[0]:
            child_begins()
        entry = self.entry
        if entry is None or entry.lender is None:
            raise self.lender.lease_error(entry)
        return entry.item

    def end(self, broken: str | None = None) -> None:
        """Give the item back; *broken* says why it must not be lent again. The second time does nothing."""
        self.lender.release(self, broken)

    def __repr__(self) -> str:
        state = "ended" if self.ended else repr(self.item)
        return f"<Lease of pool {self.lender.name!r}: {state}>"
