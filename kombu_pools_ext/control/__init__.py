"""Commands to the pools of this process (:mod:`.local`), and to all processes of a project (:mod:`.client`)."""

from __future__ import annotations

from .attaching import attach, attach_to, detach, serve
from .client import Control
from .options import ControlSettings
from .project import Project

__all__ = ["Control", "ControlSettings", "Project", "attach", "attach_to", "detach", "serve"]
