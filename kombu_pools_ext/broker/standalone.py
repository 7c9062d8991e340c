"""Producers made outside ``acquire()``: each has taken a connection of its own, which its release gives back."""

from __future__ import annotations

from typing import Any

from .leased_connection import LeasedConnection
from .leased_producer import MOST_CLASSES

__all__ = ["StandaloneProducer", "give_back", "make_standalone"]


def give_back(producer: Any, error: BaseException | None = None) -> None:
    """Give the connection of *producer* back to its pool; the second time do nothing.

    :param error: what ended its use, if anything did: it decides whether the connection may be lent again.
    """
    # Taken out first: kombu's pools lend what is released twice to two borrowers.
    connection, producer.__connection__ = producer.__connection__, None
    if connection is None:
        return
    # As in kombu: prepare() gives it another connection.
    producer.channel = None
    if isinstance(connection, LeasedConnection):
        connection.release(error)
        return
    pool = getattr(connection, "_pool", None)
    if error is not None and pool is not None:
        pool.replace(connection)
    connection.release()


class StandaloneProducer:
    """Mixed into the class of a producer made outside ``acquire()``; kombu's ``release`` does nothing there."""

    # Without slots: the class of a producer is replaced, and CPython wants the same layout.

    def release(self) -> None:
        """Give the connection back to its pool; the second time do nothing."""
        give_back(self)

    close = release

    def __enter__(self) -> Any:
        return self

    def __exit__(self, exc_type: Any, exc_val: BaseException | None, exc_tb: Any) -> None:
        give_back(self, exc_val)


class _Types(dict[type[Any], "type[Any]"]):
    """By producer class, the same with :class:`StandaloneProducer` mixed in."""

    def __missing__(self, producer_class: type[Any]) -> type[Any]:
        if len(self) >= MOST_CLASSES:
            self.clear()
        made = self[producer_class] = type(
            producer_class.__name__,
            (StandaloneProducer, producer_class),
            {
                "__slots__": (),
                "__module__": producer_class.__module__,
                "__doc__": producer_class.__doc__,
            },
        )
        return made


_types = _Types()


def make_standalone(producer: Any) -> Any:
    """Have *producer*, which is nobody else's, give its connection back when it is released; return it.

    After it was made, because its class may be any function that makes a producer.
    """
    if not isinstance(producer, StandaloneProducer):
        producer.__class__ = _types[producer.__class__]
    return producer
