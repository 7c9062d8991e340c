"""Find packages that the application may have loaded."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["loaded"]


def loaded(name: str) -> Any:
    """Return the module *name* if it is completely imported; else ``None``.

    Another thread may be importing it. If this thread imported it too, Python might give one of the two a partially
    initialized module, to avoid a deadlock.
    """
    module = sys.modules.get(name)
    if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
        return None
    return module
