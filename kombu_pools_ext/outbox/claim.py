"""What a relay has claimed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .row import Row

__all__ = ["Claim"]


@dataclass(frozen=True)
class Claim:
    """Rows that are a relay's until its lease ends.

    :param rows: in the order of their ids; of a key only the first that is not done.
    :param is_full: whether there may be more that are due.
    """

    rows: Sequence[Row]
    is_full: bool
