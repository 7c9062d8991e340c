"""What a borrower holds: a connection or producer of kombu whose identity is one lease.

A view shares the ``__dict__`` of the pooled object: it *is* that connection in every respect but one, its release.
When its lease ends it gets a state of its own, of which every use is an error; so whoever kept it can neither
use nor release what has become another borrower's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import kombu

from ..engine import Lease
from ..errors import LeaseError
from ..masking import MASK
from . import leftovers
from .lent_settings import SETTINGS, LentSetting
from .naming import uri_of
from .soundness import is_sound, verdict_on

if TYPE_CHECKING:
    from .connections import ConnectionPool
    from .driver import OpenConnection  # noqa: F401  # within quotes, below

__all__ = [
    "INHERITED",
    "RELEASED_STATE",
    "ConnectionView",
    "ended_state",
]

RELEASED = "this was released to its pool, and may be another borrower's by now; acquire a new one"
INHERITED = (
    "this belongs to the process that this one was forked from; acquire a new one in this process"
)


class _Ended:
    """Stands where the transport was: whatever is asked of it is an error."""

    __slots__ = ("_why",)

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, name: str) -> Any:
        raise LeaseError(self._why)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise LeaseError(self._why)


class _NoBatch(_Ended):
    """Stands where kombu notes the batch that a thread is in: a block that ends after the lease takes its batch out."""

    __slots__ = ()

    def __delattr__(self, name: str) -> None:
        """Do nothing, for nothing is there."""


def ended_state(why: str) -> dict[str, Any]:
    """The ``__dict__`` of a connection or producer that must not be used any more."""
    nothing = _Ended(why)
    return {
        # a connection's
        "_transport": nothing,
        "transport_cls": nothing,
        "_connection": nothing,
        "_default_channel": None,
        "declared_entities": set(),
        "transport_options": {},
        "alt": [],
        "cycle": None,
        # a producer's
        "_channel": nothing,
        "__connection__": nothing,
        "exchange": nothing,
        "_batch_local": _NoBatch(why),
    }


#: What a view becomes when it is released.
RELEASED_STATE = ended_state(RELEASED)


# With a name, for a type checker would take a literal for all there is: the bases have a __dict__.
_SLOTS: tuple[str, ...] = ("_pool",)


class ConnectionView(Lease["OpenConnection"], kombu.Connection):
    """A lent connection: everything of :class:`kombu.Connection`, and ``release`` gives it back."""

    __slots__ = _SLOTS

    #: The pool that lent it.
    _pool: ConnectionPool

    # Not kombu's: its state is that of the pooled connection.
    __init__ = object.__init__

    def release(self, error: BaseException | None = None) -> None:
        """Give the connection back to its pool; the second time does nothing.

        :param error: what ended its use, where something did: it decides whether the connection may be lent again.
        """
        entry = self._entry
        if entry is None or entry.engine is None:
            return
        # Not of verdict_on() where is_sound() has all to say: this is on the hot path.
        if error is not None:
            verdict = verdict_on(entry.item, error)
        else:
            verdict = None if is_sound(entry.item) else "broken"
        if entry.item.untidy or len(entry.item.__dict__) != entry.item.size:
            entry.item.untidy = True
            self.end(verdict)
            return
        self.__dict__ = RELEASED_STATE
        self._engine.release(self, verdict)

    close = release

    def __exit__(self, exc_type: Any, exc_val: BaseException | None, exc_tb: Any) -> None:
        self.release(exc_val)

    def end(self, broken: str | None = None) -> None:
        # A producer's lease ends here: whoever kept its connection must not go on with it.
        entry = self._entry
        if entry is not None and entry.engine is not None and entry.item.untidy:
            leftovers.end_lease(self._end, entry, broken)
        else:
            self._end(broken)

    def _end(self, broken: str | None) -> None:
        self.__dict__ = RELEASED_STATE
        self._engine.release(self, broken)

    def as_uri(self, include_password: bool = False, mask: str = MASK, *args: Any) -> str:
        """Kombu's; without a password it shows no piece of one either, wherever kombu has put it."""
        return self.item.as_uri(include_password, mask, *args)

    def clone(self, **kwargs: Any) -> kombu.Connection:
        """A plain connection with the same settings, of no pool.

        Its heartbeat is 0, unless *kwargs* say otherwise: the pool says none for it, and a broker that hears none
        closes the connection.
        """
        return self.item.clone(**kwargs)

    def __copy__(self) -> kombu.Connection:
        return self.clone()

    def __reduce__(self) -> Any:
        return self.item.__reduce__()

    def create_transport(self) -> Any:
        """A transport whose client is the pooled connection, which outlives this view."""
        return self.item.create_transport()

    def _establish_connection(self) -> Any:
        # kombu's repairs in place come by here: bounded, and with the host's name checked, like the first time.
        return self.item._establish_connection()

    def __repr__(self) -> str:
        state = "released" if self.ended else uri_of(self)
        return f"<Connection: {state} at {id(self):#x}>"


for _name in SETTINGS:
    setattr(ConnectionView, _name, LentSetting(_name))
