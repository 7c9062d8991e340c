"""Importing this fills the register of cases: those of one thread first."""

from __future__ import annotations

from . import (  # noqa: F401
    lease_cases,
    publish_cases,
    scale_cases,
    shared_cases,
    thread_cases,
    view_cases,
)
