"""The end of the interpreter: what is lent gets a grace, what is open says goodbye, all within a second.

Without the goodbyes every exit would look to a broker like a crash: RabbitMQ logs "client unexpectedly closed TCP
connection" for each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any

from . import closing, exit_hooks, fork
from .closing import Closes, close_together
from .decision import Decision
from .lease import Entry
from .loaded import loaded
from .pool import Pool
from .threads import OWN_THREADS

__all__ = ["say_goodbye"]

#: The part of the time that is left to borrowers; the rest is for goodbyes.
GRACE = 0.7
#: Seconds for which a pool's lock is waited for, which is held for microseconds.
AT_ONCE = 0.1


def say_goodbye() -> None:
    """Close what is idle in every pool, and what is lent as it comes back; from now on nothing is kept.

    What other threads still hold has until :data:`GRACE` to come back; where no other thread runs, nobody can be in
    the middle of a frame, and it says goodbye as well. The pools stay usable, for what else runs at exit. No thread is
    started: from Python 3.12 on none can be.
    """
    # What a forked child inherited is not its own: after this, its pools know nothing of it.
    fork.child_begins()
    began = time.monotonic()
    deadline = began + closing.TOGETHER
    # Of one whose lock another thread keeps, the connections end with the process.
    pools = [pool for pool in fork.live_pools(Pool) if pool.lock.comes_free(AT_ONCE)]
    close_together(_closings((pool, pool.stop_keeping()) for pool in pools), deadline)
    if others_run():
        # By the real clock, whatever clock a pool was given: the exit must not wait for one that stands still.
        for pool in pools:
            pool.await_returns(
                pool.state.generation, began + closing.TOGETHER * GRACE, time.monotonic
            )
    else:
        close_together(_closings((pool, pool.revoke_leases()) for pool in pools), deadline)


def _closings(
    decisions: Iterable[tuple[Closes, Decision[Any]]],
) -> list[tuple[Closes, Entry[Any], str]]:
    """List what each pool has decided to close."""
    return [
        (pool, entry, reason) for pool, decision in decisions for entry, reason in decision.closings
    ]


def others_run() -> bool:
    """Whether a thread, or greenlet, that may hold a lease runs besides this one."""
    if _has_greenlets():
        return True
    me = threading.current_thread()
    return any(
        one is not me and not one.name.startswith(OWN_THREADS) for one in threading.enumerate()
    )


def _has_greenlets() -> bool:
    """Whether greenlets stand for threads: nobody lists them, and each goodbye lets others run."""
    gevent: Any = loaded("gevent.monkey")
    eventlet: Any = loaded("eventlet.patcher")
    return (gevent is not None and gevent.is_module_patched("threading")) or (
        eventlet is not None and eventlet.is_monkey_patched("thread")
    )


exit_hooks.at_exit(say_goodbye)
