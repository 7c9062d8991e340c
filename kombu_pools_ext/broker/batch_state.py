"""What becomes of the messages of a batch, from the first of them to the end of its block."""

from __future__ import annotations

import weakref
from typing import Any

from ..errors import LeaseError, Outcome
from .sender import BatchSender

__all__ = ["BatchState"]


class BatchState:
    """What the outermost batch and those within it share; this one leaves each message to the producer."""

    def __init__(self, view: BatchSender) -> None:
        # Weakly: the connection's confirms, which its pool holds, know this; a lease that is dropped must be collected.
        self._view = weakref.ref(view)
        #: Whether it takes no more messages.
        self.aborted = False

    @property
    def view(self) -> BatchSender:
        """The producer; the code that uses the batch holds it."""
        view = self._view()
        if view is None:  # pragma: no cover - it is the producer, or the block, that calls
            raise LeaseError("the producer of this batch is gone; acquire a new one")
        return view

    def takes(self) -> bool:
        """Asked by the producer for each message: whether it is for :meth:`publish`.

        :raises RuntimeError: if the batch was aborted.
        """
        if self.aborted:
            raise RuntimeError("Cannot publish through an aborted batch")
        return False

    def publish(
        self,
        session: Any,
        body: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float,
    ) -> Any:
        """Publish a message that it takes on *session*, the producer's connection."""
        raise NotImplementedError

    def all_results(self) -> dict[str, Outcome]:
        """What became of each message."""
        return {}

    def settle(self) -> None:
        """Wait for what is without an answer, and send what was not sent."""

    def settle_after(self, error: BaseException) -> None:
        """Do the same for what was sent before *error* ended the block; what is wrong with it is told on *error*."""

    def tell(self, error: BaseException) -> None:
        """Say on *error*, which ended the block, what became of its messages."""

    def interrupt(self) -> None:
        """Ctrl-C, or a time-out of gevent's: there is no time to wait."""

    def leave(self) -> None:
        """The producer is about to be given back."""

    def end(self) -> None:
        """The block has ended, however it did."""
