"""The circuit breaker: whether the broker can be reached, and how many openings may be under way at once.

The first failed opening opens the breaker. Then there is one opening at a time, a probe, after pauses that grow; after
its success there is one more, and then as many as usual. To be used under the pool's lock.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["AT_ONCE", "FIRST_PAUSE", "LONGEST_PAUSE", "Breaker"]

#: Openings of one pool at a time. Two, as HikariCP found: one that hangs in a look-up would hold up all who wait, and
#: more would greet a burst with connections that nobody needs a moment later.
AT_ONCE = 2
#: Seconds of the first pause between two probes; each pause is twice the one before it, times a random number from 0
#: to 1 ("full jitter"), so that the processes of many machines do not ask together.
FIRST_PAUSE = 0.05
#: Seconds of the longest pause: no later than this after its return is a broker found again.
LONGEST_PAUSE = 2.0


class Breaker:
    """What the latest openings came to.

    :param jitter: random numbers from 0 to 1.
    """

    __slots__ = (
        "_allowed",
        "_jitter",
        "cause",
        "failures",
        "may_pass",
        "retry_at",
        "since",
        "well_at",
    )

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        #: Openings that failed in a row.
        self.failures = 0
        #: When the first of them began; not valid while there are no failures.
        self.since = 0.0
        #: When the next probe may begin.
        self.retry_at = 0.0
        #: When the latest opening succeeded.
        self.well_at = float("-inf")
        #: The latest failure.
        self.cause: BaseException | None = None
        #: Whether that failure may pass by itself: a refused connection may, a wrong password will not.
        self.may_pass = True
        self._allowed = AT_ONCE

    def failed(self, now: float, began: float, cause: BaseException, *, may_pass: bool) -> bool:
        """An opening that *began* then has failed; whether it is the first in a row."""
        if not self.failures:
            self.since = began
        self.failures += 1
        self.cause = cause
        self.may_pass = may_pass
        # The exponent has a bound of its own: 2.0 ** 1100 overflows.
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.failures - 1, 16))
        self.retry_at = now + self._jitter() * longest
        self._allowed = 1
        return self.failures == 1

    def succeeded(self, now: float) -> bool:
        """An opening has succeeded; whether it ended an outage."""
        self.well_at = now
        if not self.failures:
            self._allowed = min(AT_ONCE, self._allowed * 2)
            return False
        self.failures = 0
        self.cause = None
        return True

    def begin_anew(self) -> None:
        """Forget the outage, because what is known of it is out of date; begin with one opening at a time."""
        self.failures = 0
        self.cause = None
        self._allowed = 1

    def allows(self, now: float) -> int:
        """How many openings may be under way at once."""
        if self.failures:
            return 1 if now >= self.retry_at else 0
        return self._allowed
