"""Importing this fills the register of cases: those of one thread first."""

from __future__ import annotations

from . import lease_cases, publish_cases, scale_cases, thread_cases  # noqa: F401
