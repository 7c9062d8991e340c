"""How a pool behaves: the engine's own part of the settings."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PoolOptions"]


@dataclass(frozen=True)
class PoolOptions:
    """The engine's settings; all durations are seconds, ``None`` means never or without bound.

    The defaults are those of ``docs/reference/settings.md``, which gives their reasons, except for the bound on waiters
    and *outage_patience*, where an alias has less: a pool without settings serves code that was written for kombu.
    """

    #: Kept open in the background, also when nobody asks.
    min_idle: int = 0
    #: Callers that may wait at once, whatever the limit; ``None`` is any number.
    max_waiting: int | None = None
    #: Callers that may wait at once for each item of the limit, where *max_waiting* does not say it.
    waiting_per_item: int | None = None
    #: The longest that a caller who set no time-out waits for an opening.
    connect_timeout: float = 5.0
    #: A broker that has been away for longer is not waited for, unless something is lent that may come back. It is
    #: longer than a restart, because kombu's callers wait without end and drop what fails, and shorter than the 30 s
    #: after which gunicorn ends a worker that hangs. ``docs/howto/survive-outages.md`` has measurements.
    outage_patience: float = 20.0
    #: Closed after so long without use.
    idle_timeout: float | None = 300.0
    #: Closed at this age, when it is next idle.
    max_lifetime: float | None = 1800.0
    #: An item unused for longer is checked before it is lent.
    check_after: float = 0.5
    #: A lease held for longer is reported, with its borrower's stack.
    leak_after: float | None = None
    #: ``False``: an item is closed as soon as it comes back.
    keep: bool = True
    #: Whether they are the settings of an alias, which errors name then.
    from_settings: bool = False

    def waiting_limit(self, limit: int | None) -> int | None:
        """How many callers may wait on a pool of *limit* items; ``None`` is any number."""
        if self.max_waiting is not None or limit is None or self.waiting_per_item is None:
            return self.max_waiting
        return self.waiting_per_item * limit
