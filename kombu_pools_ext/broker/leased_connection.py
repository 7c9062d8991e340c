"""What the borrower of a connection holds: a *view* of the pooled connection, which is made for one lease.

What kombu knows of a connection, a view reads from the pooled one, by descriptors: it *is* that connection in every
respect but one, its release. What else a borrower sets on it, a wrapper of one of its methods say, is the view's own,
and nobody else's. Once its lease has ended, every use of what was common is an error; so code that kept it can
neither use nor release a connection that is another borrower's by then.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

from kombu.connection import Connection

from ..engine import Lease
from ..errors import LeaseError
from ..masking import MASK
from . import leftovers
from .connection import OpenConnection
from .lent_settings import SETTINGS, STATE, Common, LentSetting
from .naming import uri_of
from .soundness import verdict_on

__all__ = [
    "ENDED",
    "INHERITED",
    "LeasedConnection",
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
        """Do nothing, because nothing is there."""


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


#: What a lease shows when it has been released.
ENDED = ended_state(RELEASED)


class Lender(Protocol):
    """The pool, as the connections that it has lent see it."""

    def release(self, resource: Any) -> None:
        """Take a connection back."""
        ...

    def replace(self, resource: Any) -> None:
        """Take a connection back and close it."""
        ...

    def release_resource(self, resource: Any) -> None:
        """Be told of a lease that ends and whose connection may be lent again."""
        ...

    def close_resource(self, resource: Any) -> None:
        """Be told of a lease that ends and whose connection is closed."""
        ...


# With a name, because a type checker would take a literal for all there is: the bases have a __dict__.
_SLOTS: tuple[str, ...] = ("_pool", "_verdict")


class LeasedConnection(Lease[OpenConnection], Connection):
    """A lent connection: everything of :class:`kombu.Connection`, and ``release`` gives it back."""

    __slots__ = _SLOTS

    #: The pool that lent it.
    _pool: Lender
    #: Why it must not be lent again, where its block ended and its borrower's own ``release`` is yet to be called.
    _verdict: str | None

    # Not kombu's: its state is that of the pooled connection.
    __init__ = object.__init__

    def __enter__(self) -> Self:
        return self

    def release(self, error: BaseException | None = None) -> None:
        """Give the connection back to its pool; the second time does nothing.

        :param error: what ended its use, where something did: it decides whether the connection may be lent again.
        """
        entry = self.entry
        if entry is None or entry.lender is None:
            return
        item = entry.item
        # Not of verdict_on() where is_sound() has all to say: this is on the hot path.
        if error is not None:
            verdict = verdict_on(item.pooled_session, error)
        else:
            verdict = None if item.pooled_session.is_sound() else "broken"
        if item.untidy or len(item.__dict__) != item.size:
            item.untidy = True
            self.end(verdict or getattr(self, "_verdict", None))
            return
        self.lender.release(self, verdict)

    close = release

    def __exit__(self, exc_type: Any, exc_val: BaseException | None, exc_tb: Any) -> None:
        if "release" not in self.__dict__:
            self.release(exc_val)
            return
        # The borrower's own, called as kombu calls it. The block ends the lease, whatever that does.
        entry = self.entry
        if exc_val is not None and entry is not None and entry.lender is not None:
            self._verdict = verdict_on(entry.item.pooled_session, exc_val)
            entry.item.untidy = True
        try:
            self.release()
        finally:
            type(self).release(self, exc_val)

    def end(self, broken: str | None = None) -> None:
        # A producer's lease ends here: its connection, if it was kept, must not be used any more.
        entry = self.entry
        if entry is not None and entry.lender is not None and entry.item.untidy:
            leftovers.end_lease(self._end, entry, broken)
        else:
            self._end(broken)

    def _end(self, broken: str | None) -> None:
        self.lender.release(self, broken)

    def as_uri(self, include_password: bool = False, mask: str = MASK, *args: Any) -> str:
        """Kombu's; without a password it shows no piece of one either, wherever kombu has put it."""
        return self.item.as_uri(include_password, mask, *args)

    def clone(self, **kwargs: Any) -> Connection:
        """A plain connection with the same settings, of no pool.

        Its heartbeat is 0, unless *kwargs* say otherwise: the pool says none for it, and a broker that hears none
        closes the connection.
        """
        return self.item.clone(**kwargs)

    def __copy__(self) -> Connection:
        return self.clone()

    def __reduce__(self) -> Any:
        return self.item.__reduce__()

    def create_transport(self) -> Any:
        """A transport whose client is the pooled connection, which outlives this view."""
        return self.item.create_transport()

    # What kombu's `ensure`, `autoretry` and `connect` repair a connection with. The item is repaired, not the view,
    # whose lease may end meanwhile.

    @property
    def default_channel(self) -> Any:
        """Kombu's; connects anew where that is necessary, and what is published is counted if it is confirmed."""
        item = self.item
        if not self.connected:
            item._ensure_connection(**self._extract_failover_opts())
        return item.default_channel

    def _ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        return self.item._ensure_connection(*args, **kwargs)

    def _connection_factory(self) -> Any:
        return self.item._connection_factory()

    def _establish_connection(self) -> Any:
        return self.item._establish_connection()

    def collect(self, socket_timeout: float | None = None) -> None:
        """Kombu's: close what is below, without a goodbye; the lease goes on."""
        self.item.collect(socket_timeout)

    def switch(self, conn_str: str) -> None:
        """Kombu's: be set to another broker, for the time of the lease; what was connected is closed."""
        self.item.switch(conn_str)

    def maybe_switch_next(self) -> None:
        """Kombu's: be set to the next broker of the list, if there is one."""
        self.item.maybe_switch_next()

    def revive(self, new_channel: Any) -> None:
        """Kombu's: close the default channel if it is another one."""
        self.item.revive(new_channel)

    def __repr__(self) -> str:
        state = "released" if self.ended else uri_of(self)
        return f"<Connection: {state} at {id(self):#x}>"


def _of_the_item(view: LeasedConnection, name: str) -> Any:
    """Return what neither the borrower has set nor kombu's class has: the pooled connection's own attribute."""
    if name not in Lease.__slots__ and not view.ended:
        return getattr(view.item, name)
    raise AttributeError(f"{type(view).__name__!r} object has no attribute {name!r}")


# Not in the class: with a __getattr__ there, a type checker takes every name for an attribute, misspelt ones too.
setattr(LeasedConnection, "__getattr__", _of_the_item)  # noqa: B010
for _name in STATE:
    setattr(LeasedConnection, _name, Common(_name, ENDED))
for _name in SETTINGS:
    setattr(LeasedConnection, _name, LentSetting(_name, ENDED))
