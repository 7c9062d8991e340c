"""What a test needs and this machine has not: it is skipped, or fails where that is required."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["without"]


def without(server: str, why: str) -> NoReturn:
    """Skip, or fail where the servers, and what tests of theirs are made with, are required (REQUIRE_BROKERS=1)."""
    why = " ".join(why.split())
    if os.environ.get("REQUIRE_BROKERS") == "1":
        pytest.fail(f"no {server}: {why} (and REQUIRE_BROKERS is set)", pytrace=False)
    pytest.skip(f"no {server}: {why}")
