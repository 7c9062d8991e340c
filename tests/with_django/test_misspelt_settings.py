"""Misspelt names of settings are reported by the check, and at the first use."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import run_checks
from django.test import override_settings

from django_app import checks, conf, publish
from django_app.conf import PoolsImproperlyConfigured
from kombu_pools_ext.errors import SettingsError


def found() -> list[tuple[str | None, str, str | None]]:
    return [(one.id, one.msg, one.hint) for one in run_checks(tags=[checks.TAG])]


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize(
    "name, value, place",
    [
        ("KOMBU_POOL", {"default": "amqp://mq//"}, "KOMBU_POOLS"),
        ("KOMBU_POLLS", {"default": "amqp://mq//"}, "KOMBU_POOLS"),
        ("KOMBU_POOLS_URL", "amqp://mq//", 'KOMBU_POOLS = {"default": {"URL": …}}'),
        ("KOMBU_POOL_URL", "amqp://mq//", 'KOMBU_POOLS = {"default": {"URL": …}}'),
        ("KOMBU_POOLS_LIMIT", 5, 'KOMBU_POOLS = {"default": {"LIMIT": …}}'),
    ],
)
def test_a_misspelt_setting_does_not_default_to_memory(
    debug: bool, name: str, value: Any, place: str
) -> None:
    with override_settings(KOMBU_POOLS=None, DEBUG=debug, **{name: value}):
        said = ("kombu_pools.E001", f"KOMBU_POOLS: {name!r} is not a setting")
        assert found() == [(*said, f"did you mean {place}?")]
        with pytest.raises(PoolsImproperlyConfigured, match=f"{name!r} is not a setting"):
            publish({}, "orders")


def test_a_misspelt_name_beside_right_settings_is_reported_by_check_and_use() -> None:
    with override_settings(KOMBU_POOLS_LIMIT=5):
        ((check, _, _),) = found()
        assert check == "kombu_pools.E001"
        with pytest.raises(PoolsImproperlyConfigured):
            publish({}, "orders")
    assert found() == []
    assert conf.pools.settings


def test_a_misspelt_setting_of_celery_does_not_prevent_publishing() -> None:
    with override_settings(KOMBU_POOLS_CELERYS="default"):
        assert found() == [
            (
                "kombu_pools.E007",
                "KOMBU_POOLS_CELERY: 'KOMBU_POOLS_CELERYS' is not a setting",
                "did you mean KOMBU_POOLS_CELERY?",
            )
        ]
        assert conf.pools.settings


def test_a_misspelt_control_setting_does_not_prevent_publishing() -> None:
    with override_settings(KOMBU_POOLS_CONTROLL=False):
        assert found() == [
            (
                "kombu_pools.E005",
                "KOMBU_POOLS_CONTROL: 'KOMBU_POOLS_CONTROLL' is not a setting",
                "did you mean KOMBU_POOLS_CONTROL?",
            )
        ]
        assert conf.pools.settings
        with pytest.raises(SettingsError):
            conf.control_settings(conf.pools.settings)


def test_misspelt_names_are_reported_together_with_other_problems() -> None:
    with override_settings(KOMBU_POOLS={"default": {"URL": "ampq://h"}}, KOMBU_POOLS_LIMIT=5):
        assert [check for check, _, _ in found()] == ["kombu_pools.E001"] * 2


def test_an_empty_dict_is_reported() -> None:
    with override_settings(KOMBU_POOLS={}):
        ((check, message, hint),) = found()
    assert (check, message) == ("kombu_pools.E001", "KOMBU_POOLS: the dict of aliases is empty")
    assert hint == 'write {"default": {"URL": "amqp://localhost//"}}'


def test_a_hint_without_a_remedy_points_to_the_page() -> None:
    with override_settings(KOMBU_POOLS={"default": 5}):
        ((_, _, hint),) = found()
    assert hint == "See https://kombu-pools-ext.readthedocs.io/en/stable/reference/settings.html."
