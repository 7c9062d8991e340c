"""What runs at the end of a process, also where Python's exit handlers are skipped.

=======================================  ===============================================================
an interpreter that ends                 runs exit handlers
a child of multiprocessing, or billiard  leaves through ``os._exit``, after finalizers of its own
a child of Celery's prefork pool         leaves through ``os._exit``, after a signal of Celery's
uWSGI with ``skip-atexit-teardown``      leaves without the interpreter's end, after ``uwsgi.atexit``
uWSGI's master                           leaves without running any Python
=======================================  ===============================================================

It imports nothing for that: what a process has not loaded cannot end it.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from . import fork
from .loaded import loaded

__all__ = ["at_exit", "have_run", "is_uwsgi_master", "prepare", "run"]

#: The priority among finalizers: after those of others, which may publish.
LAST = -1000

_callbacks: list[Callable[[], object]] = []
#: Whether :func:`prepare` was called in this process; and whether :func:`run` was.
_prepared: list[bool] = []
_have_run: list[bool] = []
#: The function that uWSGI calls at a worker's end, once it is ours.
_ours: list[Callable[[], None]] = []


def at_exit(callback: Callable[[], object]) -> None:
    """Have ``callback()`` called at the end of this process, and of each child; perhaps more than once."""
    _callbacks.append(callback)


def have_run() -> bool:
    """Whether this process has come to its end: what is done from now on, nobody waits for."""
    return bool(_have_run)


def run(*args: object, **kwargs: object) -> None:
    """Call what was given to :func:`at_exit`, as exit handlers are: the last comes first, and an error stops none."""
    _have_run.append(True)
    with ExitStack() as stack:
        for callback in _callbacks:
            stack.callback(callback)


def prepare() -> None:
    """Register where a process ends without exit handlers. Called in each process with the first thing that it opens.

    Not at import: a child of multiprocessing forgets the finalizers that it inherited, and the application may load
    Celery later than us.
    """
    if _prepared:
        return
    _prepared.append(True)
    process: Any = loaded("multiprocessing.process")
    util: Any = loaded("multiprocessing.util")
    # A main process has exit handlers, and those of the application come before ours. billiard uses the same registry.
    if process is not None and util is not None and process.current_process()._parent_pid:
        util.Finalize(None, run, exitpriority=LAST)
    celery: Any = loaded("celery.signals")
    if celery is not None:
        celery.worker_process_shutdown.connect(run, weak=False, dispatch_uid="kombu-pools")
    uwsgi: Any = sys.modules.get("uwsgi")
    if uwsgi is not None:
        _chain(uwsgi)


def is_uwsgi_master() -> bool:
    """Whether this is uWSGI's master: it loads the application, forks the workers, and runs no Python after that.

    What it kept open would stay open, without heartbeats, and die with it, without a goodbye.
    """
    uwsgi: Any = sys.modules.get("uwsgi")
    return uwsgi is not None and bool(uwsgi.masterpid() == os.getpid())


def _chain(uwsgi: Any) -> None:
    """Run after what the application has put into ``uwsgi.atexit``, where one function has room."""
    theirs = getattr(uwsgi, "atexit", None)
    if theirs in _ours:
        # Inherited: the master has put it there.
        return

    def at_the_end() -> None:
        try:
            if theirs is not None:
                theirs()
        finally:
            run()

    _ours[:] = [at_the_end]
    uwsgi.atexit = at_the_end


fork.on_fork(_prepared.clear)
fork.on_fork(_have_run.clear)
# With the first import, so it runs after what an application registers later, whatever is imported or used after that.
atexit.register(run)
