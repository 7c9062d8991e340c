"""What the publisher asks of the pool of producers."""

from __future__ import annotations

from typing import Any, Protocol

from ..settings import RetryPolicy

__all__ = ["Lender"]


class Lender(Protocol):
    """Lends the connection that is shared."""

    #: Seconds for which a message waits for its confirm.
    confirm_timeout: float
    #: When a message is sent again after its connection broke; ``None`` is never.
    retry: RetryPolicy | None

    @property
    def name(self) -> str:
        """What errors and logs call it."""
        ...

    @property
    def blocked(self) -> str | None:
        """Why the broker takes no messages; ``None`` if it does, as far as is known."""
        ...

    def acquire(self, block: bool = False, timeout: float | None = None) -> Any:
        """Lend a producer with an open connection.

        :param timeout: seconds.
        :raises Exception: the pool's, if there is none in time.
        """
        ...

    def why_not_lent(self, seconds: float) -> Exception:
        """Return the error of a caller that has waited for so long, and got nothing. Nothing is opened."""
        ...
