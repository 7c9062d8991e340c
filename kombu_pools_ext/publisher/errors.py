"""What the shared road raises to those who call it."""

from __future__ import annotations

__all__ = ["CannotBeShared"]


class CannotBeShared(Exception):
    """The connections of this pool are none that can be shared; nothing of the message was sent."""
