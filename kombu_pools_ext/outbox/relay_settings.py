"""How a relay works, by numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["RelaySettings"]


@dataclass(frozen=True)
class RelaySettings:
    """The settings of a relay.

    :param batch: rows that a relay has of one alias at a time, at most.
    :param lease: seconds for which claimed rows are the relay's. A relay that dies keeps them waiting for as long. It
        has to be longer than a publish can take: ``ACQUIRE_TIMEOUT`` plus ``CONFIRM_TIMEOUT``, 15 s by default.
    :param poll: seconds between two looks at the table while nothing is due, where no notification comes.
    :param keep: seconds for which delivered rows stay in the table; 0.0 deletes them at once.
    :param keep_inbox: seconds for which the inbox remembers what was received; 0.0 is for ever. No copy of a message
        may come later than that.
    :param stop_keys: whether a row that can never be delivered stops its key until it is requeued or purged.
    :raises ValueError: for numbers that make no sense, all at once.
    """

    batch: int = 500
    lease: float = 60.0
    poll: float = 1.0
    keep: float = 0.0
    stop_keys: bool = False
    keep_inbox: float = 0.0

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if type(self.batch) is not int or self.batch < 1:
            yield f"batch must be a whole number of rows, 1 or more, not {self.batch!r}"
        for name, least in (("lease", 1.0), ("poll", 0.01), ("keep", 0.0), ("keep_inbox", 0.0)):
            value = getattr(self, name)
            if type(value) not in (int, float):
                yield f"{name} must be a number of seconds, not {value!r}"
            elif not (math.isfinite(value) and value >= least):
                yield f"{name} must be {least:g} seconds or more, not {value!r}"
