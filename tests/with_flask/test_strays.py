"""Names beside the settings that were meant for one of them: told by init_app, in debugging and testing too."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from flask_ext import KombuPools
from kombu_pools_ext.errors import SettingsError

LIMIT = 'did you mean KOMBU_POOLS = {"default": {"LIMIT": …}}?'
CONTROL = "did you mean KOMBU_POOLS_CONTROL?"


def refused(**config: Any) -> str:
    app = Flask("strays")
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
def test_a_misspelt_setting_does_not_fall_to_memory(
    switch: str | None, name: str, value: Any, hint: str
) -> None:
    told = refused(**{name: value}, **({switch: True} if switch else {}))
    assert told == f"KOMBU_POOLS: {name!r} is no setting; {hint}"


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
def test_a_stray_beside_right_settings_is_told(
    config: dict[str, Any], begin: str, name: str, hint: str
) -> None:
    if "CONTROL" in name:
        begin = "KOMBU_POOLS_CONTROL"
    assert refused(**config, **{name: 5}) == f"{begin}: {name!r} is no setting; {hint}"


def test_strays_are_told_together_with_all_else() -> None:
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


def test_an_empty_dict_is_told() -> None:
    assert refused(KOMBU_POOLS={}, TESTING=True).startswith(
        "KOMBU_POOLS: the dict of aliases is empty; write"
    )


def test_settings_without_their_alias_are_told() -> None:
    told = refused(KOMBU_POOLS={"URL": "amqp://mq//", "LIMIT": 3})
    assert told == (
        "KOMBU_POOLS: 'URL', 'LIMIT' are settings of a pool, and not the name of one; write "
        "{\"default\": {'URL': …}}"
    )


def test_a_text_for_control_is_told_what_it_means() -> None:
    told = refused(KOMBU_POOLS_URL="memory://", KOMBU_POOLS_CONTROL="False")
    assert "did you mean False?" in told
    told = refused(KOMBU_POOLS_URL="memory://", KOMBU_POOLS_CONTROL={"ENABLED": "false"})
    assert "did you mean False?" in told


def test_what_nobody_read_from_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_KOMBU_POOLS_URL", "memory://")
    told = refused()
    assert told.endswith(
        "call app.config.from_prefixed_env() to read FLASK_KOMBU_POOLS_URL from the environment"
    )


def test_the_names_of_others_are_theirs() -> None:
    app = Flask("others")
    app.config.update(
        KOMBU_POOLS_URL="memory://", SQLALCHEMY_POOL_SIZE=5, CELERY_BROKER_POOL_LIMIT=3
    )
    KombuPools(app)
