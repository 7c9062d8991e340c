"""Coverage in a forked child, which writes what it has measured when it ends."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["free_lock_in_children"]


def free_lock_in_children() -> None:
    """Have no other thread hold the lock of the measured data at a fork.

    A thread holds it when it comes to a file that it has not met before. Nobody would give it back in the child, which
    would wait for it at its own next file, or at its end, for ever. To be called before other hooks are registered:
    this lock is then taken after all that they do before a fork, and given back before all that they do after it.
    """
    coverage: Any = sys.modules.get("coverage")
    measuring = None if coverage is None else coverage.Coverage.current()
    collector = getattr(measuring, "_collector", None)
    if collector is not None:
        os.register_at_fork(
            before=collector.lock_data,
            after_in_parent=collector.unlock_data,
            after_in_child=collector.unlock_data,
        )
