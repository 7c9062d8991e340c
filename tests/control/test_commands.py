from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from kombu_pools_ext import Pools
from kombu_pools_ext.control import commands, local

SECRET = "s3cr3t-word"


class Terminal:
    def __init__(self) -> None:
        self.out: list[str] = []
        self.err: list[str] = []

    def run(self, action: str, pools: Pools, **options: Any) -> int:
        return commands.run(
            action, pools, write=self.out.append, complain=self.err.append, **options
        )


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def test_every_option_and_action_is_described() -> None:
    assert set(commands.ACTIONS) == {"status", "reset", "ping"}
    assert set(commands.OPTIONS) == {"using", "format", "timeout"}


def test_the_status_table(terminal: Terminal) -> None:
    pools = Pools(
        default=f"amqp://guest:{SECRET}@h//", unbounded={"url": "memory://unbounded", "limit": None}
    )
    with pools.connections["unbounded"].acquire():
        assert terminal.run("status", pools) == 0
    head, *rows = terminal.out
    assert head.split() == [
        "ALIAS", "LIMIT", "IDLE", "LENT", "OPENING", "WAITING", "ACQUIRES", "TIMEOUTS", "REFUSED",
        "OPENED", "CLOSED", "STATE", "PROCESS", "BROKER",
    ]  # fmt: skip
    assert [row.split()[:4] for row in rows] == [
        ["default", "10", "0", "0"],
        ["unbounded", "∞", "0", "1"],
    ]
    assert {row.index("amqp://") for row in rows[:1]} == {head.index("BROKER")}
    assert SECRET not in "".join(terminal.out)
    assert all(line.isprintable() for line in terminal.out)
    assert terminal.err == []


def test_the_status_tells_what_keeps_a_pool_from_lending(terminal: Terminal) -> None:
    pools = Pools(
        well="memory://status-well", down="amqp://127.0.0.1:1//", sick="memory://status-sick"
    )
    with pytest.raises(OperationalError):
        pools.connections["down"].acquire()
    sick = pools.connections["sick"]
    with sick.acquire() as lent:
        sick.publishing_blocked(lent._entry.item, "low on\nmemory")
        sick.suspend()
        assert terminal.run("status", pools) == 0
        head, *rows = terminal.out
        assert terminal.run("status", pools, format="json") == 0
    well, down, ill = (row[head.index("STATE") : head.index("PROCESS")].strip() for row in rows)
    assert (well, ill) == ("ok", "suspended, blocked: low on\\nmemory")
    assert re.fullmatch(r"down for \d+ s", down)
    found = json.loads(terminal.out[-1])["rows"]
    assert [(row["blocked"], row["suspended"]) for row in found] == [
        (None, False),
        (None, False),
        ("low on\nmemory", True),
    ]
    assert [row["outage"] is not None for row in found] == [False, True, False]


def test_status_as_one_json_document(terminal: Terminal) -> None:
    # A broker of its own: a pool that others have used has numbers already.
    assert terminal.run("status", Pools(default="memory://status-json"), format="json") == 0
    [text] = terminal.out
    document = json.loads(text)
    assert document["action"] == "status"
    [row] = document["rows"]
    assert row["pid"] == os.getpid()
    assert (row["alias"], row["broker"], row["limit"], row["closed"]) == (
        "default",
        "memory://status-json",
        10,
        {},
    )


@pytest.mark.parametrize(
    "idle, lent, line",
    [
        (0, 0, "default: closed 0 idle connections"),
        (1, 0, "default: closed 1 idle connection"),
        (3, 2, "default: closed 3 idle connections, 2 lent will be closed when they come back"),
        (0, 1, "default: closed 0 idle connections, 1 lent will be closed when it comes back"),
    ],
)
def test_reset_says_what_it_closed(terminal: Terminal, idle: int, lent: int, line: str) -> None:
    pools = Pools(default={"url": f"memory://reset{idle}{lent}", "limit": 5})
    leases = [pools.connections["default"].acquire() for _ in range(idle + lent)]
    for lease in leases[lent:]:
        lease.release()
    assert terminal.run("reset", pools) == 0
    assert terminal.out == [line]
    for lease in leases:
        lease.release()


def test_a_reset_that_failed(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = Pools(default="memory://reset-a", other="memory://reset-b")

    def fail(close_pool: bool = True) -> None:
        raise OSError("no way")

    monkeypatch.setattr(pools.connections["default"], "force_close_all", fail)
    assert terminal.run("reset", pools) == 1
    assert terminal.out == [
        "default: failed: OSError: no way",
        "other: closed 0 idle connections",
    ]
    assert terminal.err == ["reset failed for 1 of 2: default"]


def test_ping_in_both_formats(terminal: Terminal) -> None:
    pools = Pools(good="memory://", bad=f"amqp://guest:{SECRET}@127.0.0.1:1//")
    assert terminal.run("ping", pools, using=["good", "good"]) == 0
    [line] = terminal.out
    assert line.startswith("good  memory://  ok in ")
    assert line.endswith(" ms")
    terminal.out.clear()

    assert terminal.run("ping", pools, timeout=30) == 1
    good, bad = terminal.out
    assert good.index("ok in") == bad.index("failed: BrokerUnreachable")
    assert terminal.err == ["ping failed for 1 of 2: bad"]
    terminal.out.clear()

    assert terminal.run("ping", pools, timeout=30, format="json") == 1
    [text] = terminal.out
    assert [(row["alias"], row["ok"]) for row in json.loads(text)["rows"]] == [
        ("good", True),
        ("bad", False),
    ]
    assert SECRET not in text + line + bad


@pytest.mark.parametrize(
    "action, options, complaint",
    [
        ("explode", {}, "unknown action 'explode': expected one of status, reset, ping"),
        ("ping", {"format": "xml"}, "unknown format 'xml': expected one of table, json"),
        ("ping", {"timeout": 0}, "timeout must be a number of seconds above 0, not 0"),
        ("ping", {"timeout": "1"}, "timeout must be a number of seconds, not '1'"),
        (
            "status",
            {"using": ["nope"]},
            "no broker pool is configured under 'nope' (configured: 'default')",
        ),
    ],
)
def test_wrong_use(
    terminal: Terminal, action: str, options: dict[str, Any], complaint: str
) -> None:
    assert terminal.run(action, Pools(default="memory://"), **options) == 2
    assert terminal.out == []
    assert terminal.err[0].startswith(complaint)


def test_wrong_settings_are_all_told(terminal: Terminal) -> None:
    pools = Pools(
        lambda: {"a": {"URL": "memory://", "LIMIT": -1}, "b": {"URL": f"nope://u:{SECRET}@h"}}
    )
    assert terminal.run("status", pools) == 2
    [text] = terminal.err
    assert "['a']['LIMIT']" in text
    assert "['b']['URL']" in text
    assert SECRET not in text


def test_without_a_place_for_complaints_wrong_use_is_written_and_failures_stay_in_their_rows() -> (
    None
):
    out: list[str] = []
    pools = Pools(default="amqp://127.0.0.1:1//")
    assert commands.run("status", pools, using=["nope"], write=out.append) == 2
    assert out[0].startswith("no broker pool is configured")
    out.clear()
    assert commands.run("ping", pools, format="json", write=out.append) == 1
    json.loads("".join(out))


def test_no_pools(terminal: Terminal) -> None:
    for action in commands.ACTIONS:
        assert terminal.run(action, Pools({})) == 0
    assert terminal.out == ["no pools are configured"] * 3


def test_lines_can_be_painted_and_stay_aligned() -> None:
    out: list[str] = []
    pools = Pools(good="memory://", bad="amqp://127.0.0.1:1/painted")
    for action in commands.ACTIONS:
        commands.run(action, pools, write=out.append, paint=lambda kind, line: f"<{kind}>{line}")
    assert [line.partition(">")[0][1:] for line in out] == [
        "head", "plain", "plain", "good", "good", "good", "bad",
    ]  # fmt: skip


def test_control_characters_do_not_reach_the_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = local.PingRow("host", 1, "red\x1b[31m", "memory://", False, None, "no\x07 \u202eway")
    monkeypatch.setattr(local, "ping", lambda *args: [row])
    assert terminal.run("ping", Pools(default="memory://")) == 1
    assert terminal.out == [r"red\x1b[31m  memory://  failed: no\x07 \u202eway"]
