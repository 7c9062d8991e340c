"""Pauses that grow, with jitter, so that those who failed together do not come back together."""

from __future__ import annotations

import random

__all__ = ["Backoff"]


class Backoff:
    """Pauses of half to all of ``first * 2 ** count`` seconds, up to *most*.

    :param first: seconds.
    :param most: seconds.
    :param chance: returns a number from 0.0 to 1.0.
    """

    def __init__(self, first: float, most: float, chance: random.Random | None = None) -> None:
        self._first = first
        self._most = most
        self._random = chance or random.Random()

    def seconds(self, count: int) -> float:
        """Return the pause after *count* earlier failures.

        :param count: 0 or more.
        """
        # 2 ** 64 seconds are far beyond any limit, and a float holds them.
        full = min(self._most, self._first * 2.0 ** min(count, 64))
        return full * (0.5 + self._random.random() / 2)
