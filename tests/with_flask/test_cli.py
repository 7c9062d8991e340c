"""``flask kombu-pools``: the core's command, through Flask's command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

from flask_ext import KombuPools, pools_reset
from kombu_pools_ext.control.commands import ACTIONS, FORMATS, OPTIONS

from .conftest import MakeApp

Flasks = Callable[..., Result]

SECRET = "s3cr3t-w0rd"


@pytest.fixture
def two(make_app: MakeApp, memory_url: str) -> Flask:
    """An app whose second broker is not there."""
    unreachable = {"URL": f"amqp://me:{SECRET}@127.0.0.1:1//", "CONNECT_TIMEOUT": 1}
    return make_app({"KOMBU_POOLS": {"default": {"URL": memory_url}, "audit": unreachable}})


@pytest.fixture
def flask(two: Flask) -> Flasks:
    def invoke(*args: str, color: bool = False) -> Result:
        return two.test_cli_runner().invoke(args=["kombu-pools", *args], color=color)

    return invoke


def rows(result: Result) -> list[dict[str, Any]]:
    document = json.loads(result.stdout)
    found: list[dict[str, Any]] = document["rows"]
    return found


def test_help_names_actions_and_options(flask: Flasks) -> None:
    assert all(action in flask("--help").output for action in ACTIONS)
    for action in ACTIONS:
        shown = flask(action, "--help").output
        assert all(f"--{option}" in shown for option in OPTIONS)
        assert f"[{'|'.join(FORMATS)}]" in shown


def test_only_apps_with_pools_have_the_command(two: Flask) -> None:
    assert "kombu-pools" in two.cli.commands
    assert "kombu-pools" not in Flask("bare").cli.commands


def test_status(flask: Flasks, two: Flask) -> None:
    two.extensions["kombu_pools"].publish({}, "queue")
    result = flask("status")
    assert result.exit_code == 0
    head, default, audit = result.stdout.splitlines()
    assert head.startswith("ALIAS")
    assert default.startswith("default")
    assert audit.endswith("amqp://me:**@127.0.0.1:1//")
    (row,) = rows(flask("status", "--using", "default", "--format", "json"))
    assert (row["alias"], row["opened"], row["idle"]) == ("default", 1, 1)


def test_reset(flask: Flasks, two: Flask, pools: KombuPools) -> None:
    heard = []

    def receive(sender: Flask, **what: Any) -> None:
        heard.append(what)

    state = two.extensions["kombu_pools"]
    state.publish({}, "queue")
    with pools_reset.connected_to(receive, sender=two):
        result = flask("reset", "--using", "default", "--using", "audit")
    assert result.stdout.splitlines() == [
        "default: closed 1 idle connection",
        "audit: closed 0 idle connections",
    ]
    assert result.exit_code == 0
    assert heard == [{"reason": "command"}]
    assert state.connections["default"].stats().size == 0
    state.publish({}, "queue")


def test_ping_fails_with_a_code_if_one_broker_does(flask: Flasks) -> None:
    assert flask("ping", "--using", "default").exit_code == 0
    result = flask("ping", "--timeout", "30")
    assert result.exit_code == 1
    good, bad = result.stdout.splitlines()
    assert "ok in" in good
    assert "failed" in bad
    assert "ping failed for 1 of 2: audit" in result.stderr
    assert [row["ok"] for row in rows(flask("ping", "--timeout", "30", "--format", "json"))] == [
        True,
        False,
    ]


def test_ping_on_brokers_that_are_there(make_app: MakeApp, amqp_url: str, redis_url: str) -> None:
    app = make_app({"KOMBU_POOLS": {"default": amqp_url, "cache": redis_url}})
    result = app.test_cli_runner().invoke(args=["kombu-pools", "ping"])
    assert result.exit_code == 0
    assert result.stdout.count("ok in") == 2


@pytest.mark.parametrize(
    "args, says",
    [
        (["ping", "--using", "adit"], "did you mean 'audit'"),
        (["ping", "--timeout", "nan"], "timeout must be a number of seconds above 0"),
        (["ping", "--timeout", "soon"], "not a valid float"),
        (["ping", "--timeout", "-1"], "timeout must be a number of seconds above 0"),
        (["status", "--format", "xml"], "xml"),
        (["explode"], "No such command"),
    ],
)
def test_what_cannot_be_understood(flask: Flasks, args: list[str], says: str) -> None:
    result = flask(*args)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


def test_colours_are_for_terminals(flask: Flasks) -> None:
    assert "\x1b[" not in flask("status").output
    assert "\x1b[1m" in flask("status", color=True).output


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_secret_is_in_no_output(flask: Flasks, action: str, format: str) -> None:
    result = flask(action, "--format", format, "--timeout", "2")
    assert SECRET not in result.output
