"""A lent producer that was revived onto a channel of another connection than its own, as by ``origin.ensure``.

It publishes there until its lease ends or a retry takes another connection of the pool, and its own connection is
given back as usual.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from kombu.connection import is_connection
from kombu.utils.functional import ChannelPromise

from ..errors import LeaseError
from .batch_state import BatchState
from .foreign import session_of
from .leased_connection import LeasedConnection
from .leased_producer import LeasedProducer
from .session import Session

__all__ = ["Revived", "note_revival"]


class Revived(LeasedProducer):
    """Mixed into the class of a lent producer for as long as it has another connection's channel."""

    __slots__ = tuple[str, ...]()

    #: The class that the producer had before it was revived, and gets back.
    _class_before: type[LeasedProducer]

    @property
    def publishes_on(self) -> Any:
        """The connection that the channel is of."""
        self._lease.item  # noqa: B018  # raises after the end
        connection, loan = self.__dict__["revived_on"]
        if loan is not None and connection.driver.loan_of(connection) != loan:
            raise LeaseError(
                f"pool {self._pool.name!r}: this producer was revived on another lease, which has ended; revive it on "
                "a connection that is still lent, or acquire another producer"
            )
        return connection

    def release(self) -> None:
        self.undo_revival()
        # By its name: the borrower may have put a wrapper of this in its place.
        LeasedProducer.release(self)

    close = release

    def __exit__(self, exc_type: Any, exc_val: BaseException | None, exc_tb: Any) -> None:
        self.undo_revival()
        LeasedProducer.__exit__(self, exc_type, exc_val, exc_tb)

    def undo_revival(self) -> None:
        """Let go of the other connection's channel, and take the class back that the producer had before."""
        state = self.__dict__
        if "revived_on" not in state:
            # Done before: this was called through a bound method that somebody has kept.
            return
        channel, on_return = state.get("_channel"), state.get("on_return")
        listeners = getattr(channel, "events", None)
        if on_return and listeners:
            listeners["basic_return"].discard(on_return)
        del state["revived_on"]
        state["_channel"] = None
        self.__class__ = self._class_before  # type: ignore[assignment, unused-ignore]  # of the same layout

    def publish_on_session(
        self,
        session: Session,
        body: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float,
    ) -> Any:
        """Publish on the connection that it was revived on."""
        with self._confirmed():
            return super().publish_on_session(
                session_of(self.publishes_on), body, args, kwargs, deadline
            )

    @contextlib.contextmanager
    def _confirmed(self) -> Iterator[None]:
        """Within, the channel confirms what is published if the producer's own connection does."""
        own = getattr(self._lease.item, "established", None)
        channel: Any = self.channel
        confirming = getattr(channel, "basic_publish_confirm", None)
        wanted = (
            getattr(own, "confirm_publish", False)
            and confirming is not None
            and not getattr(channel.connection, "confirm_publish", False)
        )
        if not wanted:
            yield
            return
        # Not set: what is set on a channel of a lease is noted.
        before = channel.__dict__.get("basic_publish")
        channel.__dict__["basic_publish"] = confirming
        try:
            yield
        finally:
            if before is None:
                channel.__dict__.pop("basic_publish", None)
            else:
                channel.__dict__["basic_publish"] = before

    def note_what_broke(self, session: Session, error: BaseException) -> None:
        """Note what *error* did to the producer's own connection: what happens to the other one says nothing of it."""
        if session is self._lease.item.pooled_session:
            super().note_what_broke(session, error)

    def _new_batch(self, max_size: int) -> BatchState | None:
        return None


class _RevivedTypes(dict[type[Any], "type[Any]"]):
    """By class of a lent producer, the same while it has another connection's channel."""

    def __missing__(self, view_type: type[Any]) -> type[Any]:
        names = {
            "__slots__": (),
            "__module__": view_type.__module__,
            "__doc__": view_type.__doc__,
            "_class_before": view_type,
        }
        revived_type = self[view_type] = type(view_type.__name__, (Revived, view_type), names)
        return revived_type


_revived_types = _RevivedTypes()


def note_revival(view: Any, given: Any, before: Any) -> None:
    """Note whose channel *view* has from now on.

    :param given: what it was revived with: a channel, or a connection.
    :param before: the channel that it had.
    """
    item = view.leased_item
    connection = _connection_of(view, given)
    if connection is None or connection is item:
        # On a channel of the connection that it was broken on it stays so.
        if (
            getattr(before, "connection", None) is not item._connection
            and item.pooled_session.is_sound()
        ):
            view._broken = False
    else:
        driver = getattr(connection, "driver", None)
        # Once that lease has ended, the connection may be another borrower's.
        view.__dict__["revived_on"] = (
            connection,
            None if driver is None else driver.loan_of(connection),
        )
        view.__class__ = _revived_types[view.__class__]


def _connection_of(view: Any, given: Any) -> Any:
    if not is_connection(given):
        channel = view.channel if isinstance(given, ChannelPromise) else given
        given = getattr(channel.connection, "client", None)
    return given.item if isinstance(given, LeasedConnection) else given
