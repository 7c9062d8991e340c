"""What a lease left behind, in numbers and words; and who is told of it."""

from __future__ import annotations

import logging
from typing import Any

from ..engine.lease import Borrower

__all__ = ["Left", "note_untidy"]

logger = logging.getLogger("kombu_pools_ext")

#: Lines that are remembered at most; past it, for code that is made as it goes, each may be named again.
MOST_LINES = 1000

_WHAT_TO_DO = (
    "Cancel each consumer and close each channel and SimpleQueue (a with block does), and acknowledge, reject or "
    "requeue each message, before the release; what is to go on consuming needs a connection of its own: see the "
    'how-to "Consume"'
)

#: The lines that were named, as code objects and places in them.
_named: set[tuple[object, int]] = set()


def note_untidy(established: Any) -> None:
    """Have the end of the lease look at what was done on *established*, the transport's connection."""
    client = getattr(established, "client", None)
    if client is not None:
        client.untidy = True


class Left:
    """What one lease left behind that its borrower should know of."""

    __slots__ = ("channels", "consumers", "unacked")

    def __init__(self) -> None:
        self.consumers = 0
        #: Not counting the default one.
        self.channels = 0
        #: Messages that were taken and not answered.
        self.unacked = 0

    def __str__(self) -> str:
        parts = [
            f"{count} {word}{'' if count == 1 else 's'}"
            for count, word in (
                (self.consumers, "consumer"),
                (self.channels, "open channel"),
                (self.unacked, "unacknowledged message"),
            )
            if count
        ]
        return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)

    def tell(self, pool: str, borrower: Borrower | None) -> None:
        """Name the line that borrowed, once; nothing is said if nothing was left.

        Consumers and channels are worth a warning. Messages alone are told at INFO: they went back, as they should.
        """
        words = str(self)
        if not words or borrower is None:
            return
        line = borrower.code, borrower.instruction
        if line in _named:
            return
        if len(_named) >= MOST_LINES:
            _named.clear()
        _named.add(line)
        # Messages alone are what a SimpleQueue had fetched ahead, or what work that raised had taken: no mistake.
        mistaken = bool(self.consumers or self.channels)
        logger.log(
            logging.WARNING if mistaken else logging.INFO,
            "pool %r: a lease left %s behind, which ended with it%s; borrowed at %s. %s",
            pool,
            words,
            ": the messages went back to their queues" if self.unacked else "",
            borrower,
            _WHAT_TO_DO,
        )
