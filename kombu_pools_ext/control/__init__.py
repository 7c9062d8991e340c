"""Steering pools: those of this process (:mod:`.local`), and those of every process of the project (:mod:`.reach`)."""

from __future__ import annotations

from .attaching import attach, attach_to, detach, serve
from .options import ControlSettings
from .project import Project
from .reach import Control

__all__ = ["Control", "ControlSettings", "Project", "attach", "attach_to", "detach", "serve"]
