"""Packages that somebody else may have loaded."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["loaded"]


def loaded(name: str) -> Any:
    """The module *name* if it has been imported as a whole; ``None`` else.

    Another thread may be in the middle of that. To import it as well would give one of the two half of it, which Python
    prefers to a deadlock; and half of it has not what is looked for.
    """
    module = sys.modules.get(name)
    if module is None or getattr(getattr(module, "__spec__", None), "_initializing", False):
        return None
    return module
