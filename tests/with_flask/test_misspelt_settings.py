"""Misspelt names of settings are reported by init_app, also when debugging and testing."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from flask_ext import KombuPools
from kombu_pools_ext.errors import SettingsError

LIMIT = 'did you mean KOMBU_POOLS = {"default": {"LIMIT": …}}?'
CONTROL = "did you mean KOMBU_POOLS_CONTROL?"


def refused(**config: Any) -> str:
    app = Flask("misspelt")
    app.config.update(config)
    with pytest.raises(SettingsError) as caught:
        KombuPools(app)
    assert "kombu_pools" not in app.extensions
    return str(caught.value)


@pytest.mark.parametrize("switch", [None, "DEBUG", "TESTING"])
@pytest.mark.parametrize(
    "name, value, hint",
    [
        ("KOMBU_POOLS_LIMIT", 5, LIMIT),
        ("KOMBU_POOL", {"default": {"URL": "amqp://mq//"}}, "did you mean KOMBU_POOLS?"),
        ("KOMBU_POOL_URL", "amqp://mq//", "did you mean KOMBU_POOLS_URL?"),
        ("kombu_pools_url", "amqp://mq//", "did you mean KOMBU_POOLS_URL?"),
        ("KOMBU_POLLS", {"default": "amqp://mq//"}, "did you mean KOMBU_POOLS?"),
    ],
)
def test_a_misspelt_setting_does_not_default_to_memory(
    switch: str | None, name: str, value: Any, hint: str
) -> None:
    told = refused(**{name: value}, **({switch: True} if switch else {}))
    assert told == f"KOMBU_POOLS: {name!r} is not a setting; {hint}"


@pytest.mark.parametrize(
    "config, begin",
    [
        ({"KOMBU_POOLS_URL": "memory://"}, "KOMBU_POOLS_URL"),
        ({"KOMBU_POOLS": {"default": "memory://"}}, "KOMBU_POOLS"),
    ],
)
@pytest.mark.parametrize(
    "name, hint", [("KOMBU_POOLS_LIMIT", LIMIT), ("KOMBU_POOLS_CONTROLL", CONTROL)]
)
def test_a_misspelt_name_beside_right_settings_is_reported(
    config: dict[str, Any], begin: str, name: str, hint: str
) -> None:
    if "CONTROL" in name:
        begin = "KOMBU_POOLS_CONTROL"
    assert refused(**config, **{name: 5}) == f"{begin}: {name!r} is not a setting; {hint}"


def test_misspelt_names_are_reported_together_with_other_problems() -> None:
    lines = refused(KOMBU_POOLS_URL="ampq://h", KOMBU_POOLS_LIMIT=5).splitlines()
    assert len(lines) == 2
    assert all(line.startswith("KOMBU_POOLS_URL: ") for line in lines)
    both = refused(
        KOMBU_POOLS={"default": "memory://"}, KOMBU_POOLS_URL="memory://", KOMBU_POOL=1
    ).splitlines()
    assert len(both) == 2
    control = refused(
        KOMBU_POOLS_URL="memory://", KOMBU_POOLS_CONTROL={"KEY": 5}, KOMBU_POOLS_CONTROLL=False
    ).splitlines()
    assert len(control) == 2


def test_an_empty_dict_is_reported() -> None:
    assert refused(KOMBU_POOLS={}, TESTING=True).startswith(
        "KOMBU_POOLS: the dict of aliases is empty; write"
    )


def test_settings_without_their_alias_are_reported() -> None:
    told = refused(KOMBU_POOLS={"URL": "amqp://mq//", "LIMIT": 3})
    assert told == (
        "KOMBU_POOLS: 'URL', 'LIMIT' are settings of a pool, and not the name of one; write "
        "{\"default\": {'URL': …}}"
    )


def test_a_text_for_the_control_setting_gets_a_hint() -> None:
    told = refused(KOMBU_POOLS_URL="memory://", KOMBU_POOLS_CONTROL="False")
    assert "did you mean False?" in told
    told = refused(KOMBU_POOLS_URL="memory://", KOMBU_POOLS_CONTROL={"ENABLED": "false"})
    assert "did you mean False?" in told


def test_unread_environment_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_KOMBU_POOLS_URL", "memory://")
    told = refused()
    assert told.endswith(
        "call app.config.from_prefixed_env() to read FLASK_KOMBU_POOLS_URL from the environment"
    )


def test_names_of_other_extensions_are_not_reported() -> None:
    app = Flask("others")
    app.config.update(
        KOMBU_POOLS_URL="memory://", SQLALCHEMY_POOL_SIZE=5, CELERY_BROKER_POOL_LIMIT=3
    )
    KombuPools(app)
