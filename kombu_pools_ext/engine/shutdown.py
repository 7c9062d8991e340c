"""The end of the interpreter: what is lent gets a grace, what is open says goodbye, all within a second.

Without the goodbyes every exit would look to a broker like a crash: RabbitMQ logs "client unexpectedly closed TCP
connection" for each.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from . import fork, upkeep, ways_out
from .loaded import loaded
from .pool import Pool
from .threads import OWN_THREADS

__all__ = ["say_goodbye"]

#: The part of the time that is left to borrowers; the rest is for goodbyes.
GRACE = 0.7


def say_goodbye() -> None:
    """Close what is idle in every pool, and what is lent as it comes back; from now on nothing is kept.

    What other threads still hold has until :data:`GRACE` to come back; where no other thread runs, nobody can be in
    the middle of a frame, and it says goodbye as well. The pools stay usable, for what else runs at exit. No thread is
    started: from Python 3.12 on none can be.
    """
    # What a forked child inherited is not its own: after this, its pools know nothing of it.
    fork.child_begins()
    began = time.monotonic()
    deadline = began + upkeep.TOGETHER
    pools = fork.live_pools(Pool)
    upkeep.close_together(
        [(pool, entry, "closed") for pool in pools for entry in pool.retire()], deadline
    )
    if others_run():
        # By the real clock, whatever clock a pool was given: the exit must not wait for one that stands still.
        for pool in pools:
            pool.await_returns(
                pool.ledger.generation, began + upkeep.TOGETHER * GRACE, time.monotonic
            )
    else:
        lent = [(pool, entry, "closed") for pool in pools for entry in pool.recall()]
        upkeep.close_together(lent, deadline)


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


ways_out.at_exit(say_goodbye)
