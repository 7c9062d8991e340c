"""What a borrower does on one of kombu's virtual transports that outlives its lease: Redis, memory and their like.

There the client keeps account of the messages that are not acknowledged, and gives them back when the channel is
closed; so that is done with the lease.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import kombu
from kombu.transport import virtual

from . import redis_sockets
from .left import Left, note_untidy
from .lent_settings import MISSING, put_back_attributes
from .naming import uri_of

__all__ = ["close_channels", "end", "longest_poll", "note_channels"]

logger = logging.getLogger("kombu_pools_ext")


#: The packages whose code is not a borrower's.
_PACKAGES = ("kombu", "kombu_pools_ext")


class _Channel:
    """Mixed into a channel class of kombu's virtual transports: notes that it is used for more than publishing."""

    connection: Any
    #: The modules of its classes, which set its attributes in the course of their work.
    own_modules: frozenset[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: What attributes that its borrower has set or deleted were before.
        self.__dict__["altered"] = {}
        self._note()

    def __setattr__(self, name: str, value: Any) -> None:
        self._note_change(name, sys._getframe(1).f_globals.get("__name__"))
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._note_change(name, sys._getframe(1).f_globals.get("__name__"))
        super().__delattr__(name)

    def _note_change(self, name: str, module: str | None) -> None:
        """Have *name* put back at the end of the lease, unless *module* is one whose code makes up the channel."""
        state = self.__dict__
        own = str(module).partition(".")[0] in _PACKAGES or module in self.own_modules
        if "altered" in state and not own:
            state["altered"].setdefault(name, state.get(name, MISSING))
            self._note()

    def _note(self) -> None:
        note_untidy(self.connection)

    def basic_consume(self, *args: Any, **kwargs: Any) -> Any:
        self._note()
        return super().basic_consume(*args, **kwargs)  # type: ignore[misc]  # of the class behind this mix-in

    def basic_get(self, *args: Any, **kwargs: Any) -> Any:
        self._note()
        return super().basic_get(*args, **kwargs)  # type: ignore[misc]  # as above

    def basic_qos(self, *args: Any, **kwargs: Any) -> Any:
        self._note()
        return super().basic_qos(*args, **kwargs)  # type: ignore[misc]  # as above


_classes: dict[type[Any], type[Any]] = {}


def note_channels(transport: Any) -> None:
    """Have the channels of *transport* note what is left on them, if it is a virtual one."""
    if not isinstance(transport, virtual.Transport):
        return
    kind: type[Any] = transport.Channel
    if kind not in _classes:
        modules = frozenset(one.__module__ for one in kind.__mro__)
        namespace = {"__doc__": kind.__doc__, "own_modules": modules}
        _classes[kind] = type(kind.__name__, (_Channel, kind), namespace)
    transport.Channel = _classes[kind]


def end(item: kombu.Connection, transport: Any, left: Left) -> str | None:
    """End what was left on *item*, and count it in *left*; why it must be closed now, or ``None`` if it need not be.

    :param transport: what the pool has opened below *item*.
    :raises Exception: the transport's, for what it met: the connection is of no use then.
    """
    if not isinstance(transport, virtual.Transport):
        return None
    kept = [item._default_channel, *transport._avail_channels]
    reason = None
    for channel in tuple(transport.channels):
        left.consumers += len(channel._consumers)
        left.unacked += _unacked(channel)
        for tag in tuple(channel._consumers):
            channel.basic_cancel(tag)
        _give_back(channel)
        asks = _is_asking(channel)
        if asks:
            # Redis may send a message at any moment, and the next borrower is not the one to read it.
            reason = "leftovers"
        if not any(channel is one for one in kept):
            left.channels += 1
            if not asks:
                channel.close()
            continue
        put_back_attributes(channel.__dict__, channel.altered)
        if channel._qos is not None:
            channel._qos.prefetch_count = 0
        if not asks:
            redis_sockets.keep_one(channel)
    transport._callbacks.clear()
    return reason


def close_channels(item: kombu.Connection) -> None:
    """Give back what was taken on *item*, which is about to be closed; nobody is called with what still comes."""
    transport = item._connection
    if not isinstance(transport, virtual.Transport):
        return
    transport._callbacks.clear()
    for channel in tuple(transport.channels):
        with _logged(item):
            _give_back(channel)
        with _logged(item):
            # Not by the transport, which forgets the channel first: what still comes would be lost.
            channel.close()


def longest_poll(item: kombu.Connection) -> float:
    """Seconds until the answer to what *item* still asks of Redis is there."""
    transport = item._connection
    if not isinstance(transport, virtual.Transport):
        return 0.0
    return max(
        (
            # Older kombus ask for a second at a time.
            float(getattr(channel, "brpop_timeout", 1.0) or 0)
            for channel in transport.channels
            if _is_asking(channel)
        ),
        default=0.0,
    )


def _is_asking(channel: Any) -> bool:
    """Whether Redis has a request of *channel* that it answers when a message comes."""
    return bool(getattr(channel, "_in_poll", None) or getattr(channel, "_in_listen", None))


def _unacked(channel: Any) -> int:
    qos = channel._qos
    if qos is None:
        return 0
    qos._flush()
    return len(qos._delivered)


def _give_back(channel: Any) -> None:
    """Put messages that are not acknowledged into their queues again."""
    # Where the broker itself does so after a while, SQS say, there would be two of each. Memory has no other way.
    if _unacked(channel) and (channel.do_restore or _is_memory(channel)):
        channel._qos.restore_unacked()


def _is_memory(channel: Any) -> bool:
    return getattr(channel.connection, "driver_type", None) == "memory"


@contextlib.contextmanager
def _logged(item: kombu.Connection) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        logger.debug("%s: what a lease left could not be ended: %r", uri_of(item), error)
