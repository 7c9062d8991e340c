"""One thread of a leased road."""

from __future__ import annotations

from ..engine.auto_reset_event import AutoResetEvent

__all__ = ["Worker"]


class Worker(AutoResetEvent):
    """What a thread waits with while it has nothing to publish.

    Its thread alone holds it: when that is killed, the road knows by the weak reference that it is gone.
    """

    __slots__ = ()
