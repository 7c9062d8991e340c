"""Publishing over one connection that all threads and event loops of the process share.

``docs/explanation/shared-publishing.md`` describes the states, who owns what, and what can happen at each step.
"""

from __future__ import annotations

from .errors import CannotBeShared
from .outgoing import Outgoing
from .road import SharedRoad, road_of

__all__ = ["CannotBeShared", "Outgoing", "SharedRoad", "road_of"]
