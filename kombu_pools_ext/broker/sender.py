"""A producer, as those below it see it: the session that it publishes on, and the batch that it is in."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["BatchSender", "Sender"]


class Sender(Protocol):
    """A producer, as the session that it publishes on sees it."""

    #: Whether its class publishes as kombu's does, so that the fast path leads to the same.
    publishes_as_kombu: bool
    #: How a body is made bytes, unless its publish says it.
    serializer: Any

    @property
    def name_of_pool(self) -> str:
        """What errors and logs call the pool that it is of."""
        ...

    def publish_as_its_class(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        """Publish *body* as the producer's own class does."""
        ...

    def message_id_of(self, kwargs: dict[str, Any]) -> str:
        """Return the ``message_id`` of what is being published."""
        ...

    def has_one_queue(self, kwargs: dict[str, Any]) -> bool:
        """Whether what is being published goes to one queue, by the default exchange."""
        ...


class BatchSender(Sender, Protocol):
    """A lent producer, as the batch that it is in sees it."""

    @property
    def leased_item(self) -> Any:
        """The connection of its lease.

        :raises LeaseError: if the lease has ended.
        """
        ...

    @property
    def released(self) -> bool:
        """Whether its lease has ended."""
        ...

    @property
    def broken(self) -> bool:
        """Whether a publish has left the connection in an unknown state."""
        ...

    @property
    def channel(self) -> Any:
        """The channel that it publishes on, which is opened if there is none."""
        ...

    @property
    def seconds_to_publish(self) -> float:
        """Seconds for one try of a publish, its confirm included, where the call does not say it."""
        ...

    @property
    def raises_returned(self) -> bool:
        """Whether a message that came back is an error although a callback has heard of it."""
        ...

    def ids_of_publish(self, kwargs: dict[str, Any]) -> list[str]:
        """The ids of what one publish sends: more than one where a class of the user's does that."""
        ...

    def publish_on_session(
        self,
        session: Any,
        body: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float,
    ) -> Any:
        """Publish on *session* without a retry, and note what that did to the connection."""
        ...

    def note_what_broke(self, session: Any, error: BaseException) -> None:
        """Note what *error*, raised on *session*, did to the connection."""
        ...
