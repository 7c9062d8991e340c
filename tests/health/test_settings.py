"""``KOMBU_POOLS_HEALTH``."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kombu_pools_ext.errors import SettingsError
from kombu_pools_ext.health import Condition, HealthSettings, parse_health


def test_nothing_is_needed() -> None:
    assert parse_health(None) == HealthSettings()
    assert parse_health({}).status[Condition.BLOCKED] == 503


def test_all_can_be_set() -> None:
    def allowed(request: Any) -> bool:
        return True

    found = parse_health(
        {"FRESH": 1, "TIMEOUT": 0.5, "STATUS": {"blocked": 200}, "DETAILS": "shop.allowed"},
        {"shop.allowed": allowed}.__getitem__,
    )
    assert (found.fresh, found.timeout, found.details) == (1.0, 0.5, allowed)
    assert found.status[Condition.BLOCKED] == 200
    assert found.status[Condition.DOWN] == 503


def test_all_that_is_wrong_is_told_at_once() -> None:
    def missing(path: str) -> Any:
        raise ImportError(f"no module {path}")

    given = {
        "FRESH": 0,
        "TIMEOUT": math.nan,
        "STATUS": {"blockd": 503, "down": 99},
        "DETAILS": "shop.allowed",
        "TIMEOUTS": 1,
    }
    with pytest.raises(SettingsError) as caught:
        parse_health(given, missing)
    told = str(caught.value)
    for words in (
        "FRESH", "TIMEOUT", "unknown condition 'blockd'", "did you mean 'blocked'?", "'down', got 99",
        "no module shop.allowed", "did you mean 'TIMEOUT'?",
    ):  # fmt: skip
        assert words in told
    with pytest.raises(SettingsError, match="expected a dict, got True"):
        parse_health(True)
    with pytest.raises(SettingsError, match="expected a dict of conditions"):
        parse_health({"STATUS": 503})
