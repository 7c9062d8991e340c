"""What a borrower holds: a connection or producer of kombu whose identity is one lease.

A view shares the ``__dict__`` of the pooled object: it *is* that connection in every respect but one, its release.
When its lease ends it gets a state of its own, of which every use is an error; so whoever kept it can neither
use nor release what has become another borrower's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import kombu
from kombu.exceptions import OperationalError

from ..engine import Lease
from ..errors import LeaseError
from .retrying import ANSWERED, NOT_OF_THE_WIRE

if TYPE_CHECKING:
    from .connections import ConnectionPool
    from .driver import OpenConnection

__all__ = [
    "INHERITED",
    "RELEASED_STATE",
    "ConnectionView",
    "ended_state",
    "is_sound",
    "verdict_on",
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
        "_batch_local": nothing,
    }


#: What a view becomes when it is released.
RELEASED_STATE = ended_state(RELEASED)


_HARMLESS = (GeneratorExit, *ANSWERED, *NOT_OF_THE_WIRE)


def verdict_on(item: OpenConnection, error: BaseException | None) -> str | None:
    """Why *item* must not be lent again after a lease that ended with *error*; ``None`` if it may.

    A connection or channel error, and whatever interrupted an operation (a time-out, ``KeyboardInterrupt``,
    ``gevent.Timeout``), leave an unknown state behind; an ordinary application exception does not, nor does
    a generator that is closed between two of its steps, nor a message that the broker refused or gave back.
    """
    if error is not None and not isinstance(error, _HARMLESS):
        fatal = (*item.connection_errors, *item.channel_errors, OperationalError)
        if not isinstance(error, Exception) or isinstance(error, fatal):
            return "broken"
    return None if is_sound(item) else "broken"


def is_sound(item: OpenConnection) -> bool:
    """Whether a lease has left *item* as it should: the same connection, its channel, and nothing pending."""
    established = item._connection
    try:
        # Another one than the one opened: it was repaired in place (kombu's `ensure` does), unbounded and unseen.
        if established is None or established is not item.established:
            return False
        below, confirms = item.wire, item.confirms
    except AttributeError:
        # From a pool that is not ours.
        if established is None:
            return False
        below = confirms = None
    if below is None:
        # Only py-amqp's connections know when they are gone; asked of their socket's owner, which is one call less.
        transport = getattr(established, "_transport", established)
        if transport is None or not getattr(transport, "connected", True):
            return False
    else:
        transport = established._transport
        # Interrupted: by an exception that tells nothing of the connection, as Celery's soft time limit is.
        if below.interrupted or transport is None or not transport.connected:
            return False
        # A late confirm is not for the next borrower.
        if confirms is not None and (confirms.spoiled or confirms.pending):
            return False
    channel = item._default_channel
    if channel is None:
        return True
    try:
        # Closed by the borrower: nobody opens another one in its place.
        return channel.connection is not None
    except AttributeError:
        return True


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
        self.__dict__ = RELEASED_STATE
        self._engine.release(self, verdict)

    close = release

    def __exit__(self, exc_type: Any, exc_val: BaseException | None, exc_tb: Any) -> None:
        self.release(exc_val)

    def end(self, broken: str | None = None) -> None:
        # A producer's lease ends here: whoever kept its connection must not go on with it.
        self.__dict__ = RELEASED_STATE
        self._engine.release(self, broken)

    def clone(self, **kwargs: Any) -> kombu.Connection:
        """A plain connection with the same settings, of no pool."""
        return kombu.Connection(**{**dict(self._info(resolve=False)), **kwargs})

    def __copy__(self) -> kombu.Connection:
        return self.clone()

    def __reduce__(self) -> Any:
        return kombu.Connection, tuple(self.info().values()), None

    def create_transport(self) -> Any:
        """A transport whose client is the pooled connection, which outlives this view."""
        return self.item.create_transport()

    def _establish_connection(self) -> Any:
        # kombu's repairs in place come by here: bounded, and with the host's name checked, like the first time.
        return self.item._establish_connection()

    def __repr__(self) -> str:
        state = "released" if self.ended else self.as_uri()
        return f"<Connection: {state} at {id(self):#x}>"
