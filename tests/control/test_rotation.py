"""During a rotation of the secret, commands reach processes with the old and the new secret, each of them once."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.control import Control, attach, detach
from kombu_pools_ext.control.attaching import _servers
from kombu_pools_ext.control.options import ControlSettings
from kombu_pools_ext.control.project import Project
from tests.control.rig import PATIENCE, Base, memory, until
from tests.worker import ready

#: Listens with a secret and former ones, and prints a line for each reset.
PROGRAM = """
import json, sys
from kombu_pools_ext import Pools, events
from kombu_pools_ext.control import attach, serve

url, settings, secret, former = map(json.loads, sys.argv[1:])
pools = Pools(default=url)
events.pools_reset.connect(lambda reason: print("reset", flush=True))
control = attach(pools, settings, secret=secret, secret_fallbacks=former)
serve(control.project)
print("ready", flush=True)
sys.stdin.read()
print("end", flush=True)
"""

#: By name: which secrets the process has, and the command, the current one first.
DIRECTIONS = {
    "the process has the old one alone": (["old"], ["new", "old"]),
    "the command has the old one alone": (["new", "old"], ["old"]),
    "both have both": (["new", "old"], ["new", "old"]),
    "each has its own and the other's": (["old", "new"], ["new", "old"]),
    "two rotations at once": (["new", "older", "old"], ["older"]),
}


@pytest.fixture(params=DIRECTIONS)
def sides(request: pytest.FixtureRequest) -> tuple[list[str], list[str]]:
    """The secrets of a process, and those of a command."""
    made: dict[str, str] = {}
    process, command = DIRECTIONS[request.param]
    for one in (*process, *command):
        made.setdefault(one, secrets.token_hex())
    return [made[one] for one in process], [made[one] for one in command]


def process(
    url: str, settings: dict[str, Any], mine: list[str]
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    return ready("-c", PROGRAM, *map(json.dumps, [url, settings, mine[0], mine[1:]]))


def resets(found: Any) -> int:
    """Return how often the process was reset, until its end."""
    found.stdin.close()
    return int(sum(line == "reset\n" for line in found.stdout))


@pytest.fixture
def attached() -> Iterator[Callable[..., Control]]:
    made = []

    def attached(url: str, settings: dict[str, Any], mine: list[str]) -> Control:
        pools = Pools(default=url)
        made.append(pools)
        return attach(pools, settings, secret=mine[0], secret_fallbacks=mine[1:])

    yield attached
    for one in made:
        detach(one)


def test_a_rotated_secret_on_one_machine(
    base: Base, sides: tuple[list[str], list[str]], attached: Callable[..., Control]
) -> None:
    settings = {"DIRECTORY": str(base.path)}
    theirs, ours = sides
    with process(memory(), settings, theirs) as found:
        control = attached(memory(), settings, ours)
        assert [one.pid for one in control.who(timeout=PATIENCE)] == [found.pid]
        answers = control.ask("reset", timeout=PATIENCE)
        assert answers.ok
        assert [one.process.pid for one in answers.answers] == [found.pid]
        assert control.likely_reasons() == [] or "another key" in control.likely_reasons()[0]
        assert resets(found) == 1
    assert list(base.path.iterdir()) == []


def test_a_rotated_secret_across_machines(
    base: Base,
    meeting_url: str,
    sides: tuple[list[str], list[str]],
    attached: Callable[..., Control],
) -> None:
    settings = {"DIRECTORY": str(base.path), "BROADCAST": "default"}
    theirs, ours = sides
    with process(meeting_url, settings, theirs) as found:
        # What cannot see their directory, as another machine.
        elsewhere = base.path / "elsewhere"
        elsewhere.mkdir(0o700)
        control = attached(meeting_url, {**settings, "DIRECTORY": str(elsewhere)}, ours)
        until(lambda: control.who(timeout=PATIENCE))
        answers = control.ask("reset", timeout=PATIENCE)
        assert answers.ok, answers.problems
        assert [one.process.pid for one in answers.answers] == [found.pid]
        # Both ways at once, too.
        near = attached(meeting_url, settings, ours)
        answers = near.ask("reset", timeout=PATIENCE)
        assert answers.ok, answers.problems
        assert [one.process.pid for one in answers.answers] == [found.pid]
        assert resets(found) == 2


def test_a_broker_that_is_down_is_one_problem(
    base: Base, nowhere: int, attached: Callable[..., Control]
) -> None:
    settings = {"DIRECTORY": str(base.path), "BROADCAST": "default"}
    url = f"amqp://guest:guest@127.0.0.1:{nowhere}//"
    control = attached(url, settings, [secrets.token_hex() for _ in range(3)])
    assert len(control.ask("status", timeout=PATIENCE).problems) == 1


def test_detached_pools_listen_with_none_of_their_secrets(base: Base) -> None:
    pools = Pools(default=memory())
    control = attach(
        pools, {"DIRECTORY": str(base.path)}, secret="n" * 16, secret_fallbacks=["o" * 16]
    )
    pools.connections["default"].acquire().release()
    until(lambda: len(base.sockets()) == 2)
    assert len(control.ask("status", timeout=PATIENCE).answers) == 1
    detach(pools)
    assert base.sockets() == []
    assert pools not in _servers


def test_which_former_secrets_count() -> None:
    settings = ControlSettings(broadcast="default")
    long, longer = "s" * 16, "l" * 17

    def names(*former: Any, **given: Any) -> list[str]:
        project = Project(settings, longer, former_secrets=former, **given)
        return [one.name for one in project.former]

    [old] = names(long)
    assert names(long, longer, "", long, None, 5) == [old]
    assert names(long.encode()) == [old]
    [one] = Project(settings, longer, former_secrets=long).former
    assert one.name == old
    # KEY stands for all of them.
    keyed = ControlSettings(key="k" * 16)
    assert Project(keyed, longer, former_secrets=[long]).former == ()
    # One that is too short to be believed at a broker is believed on this machine alone.
    [short] = Project(settings, longer, former_secrets=["short"]).former
    assert (short.settings.broadcast, short.settings.enabled) == (None, True)


def test_a_short_secret_is_not_accepted_from_other_machines(base: Base, tmp_path: Path) -> None:
    pools = Pools(default="amqp://localhost//")
    for secret in ("short", b"short", None, "x" * 15):
        with pytest.raises(
            ValueError, match="a secret of at least 16 characters, and there is"
        ) as e:
            attach(pools, {"BROADCAST": "default"}, secret=secret)
        assert "short" not in str(e.value)
    control = attach(pools, {"BROADCAST": "default", "DIRECTORY": str(base.path)}, secret="x" * 16)
    detach(pools)
    # What comes by another way than the settings' check is held to it as well.
    own = Project(control.project.settings, "short")
    own.pools.add(pools)
    [problem] = Control(own).ask("status", timeout=PATIENCE).problems
    assert "a secret of at least 16 characters" in problem
