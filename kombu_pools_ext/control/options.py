"""The setting ``KOMBU_POOLS_CONTROL``, the same for Django, Flask and plain Python."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..masking import describe
from ..settings import PoolSettings, Problem, SettingsError
from ..settings.problems import Report, collect, forgets_arguments, nearest, refuse, text_hint

__all__ = ["KEYS", "NAME", "SHORTEST_KEY", "ControlSettings", "parse_control", "why_unsupported"]

#: The name of the setting.
NAME = "KOMBU_POOLS_CONTROL"
#: The keys that it may have.
KEYS = ("ENABLED", "DIRECTORY", "BROADCAST", "KEY")
#: The fewest characters of a KEY. A shorter one could be found by trial from one signed message.
SHORTEST_KEY = 16


@dataclass(frozen=True)
class ControlSettings:
    """The checked settings of control."""

    #: Whether a process listens.
    enabled: bool = True
    #: The directory for the sockets, an absolute path; ``None`` means the default.
    directory: str | None = None
    #: The alias of the pool whose broker carries commands to other machines; ``None`` means this machine only.
    broadcast: str | None = None
    #: The secret that authenticates commands; ``None`` means the framework's.
    key: str | None = None

    def __repr__(self) -> str:
        shown = "None" if self.key is None else "'**'"
        return (
            f"ControlSettings(enabled={self.enabled!r}, directory={self.directory!r}, "
            f"broadcast={self.broadcast!r}, key={shown})"
        )


@forgets_arguments
def parse_control(
    value: Any,
    aliases: Collection[str],
    *,
    name: str = NAME,
    secret: str | bytes | None = None,
    beside: Iterable[Problem] = (),
) -> ControlSettings:
    """Check *value*, and return the settings of control.

    :param value: a mapping with :data:`KEYS`, ``None`` for the defaults, or ``False`` to turn control off.
    :param aliases: the aliases that BROADCAST may name; if it is a dict of their settings, transports are checked too.
    :param secret: the framework's secret. If there is none, or it is too short, BROADCAST needs a KEY.
    :param beside: problems of other settings, to be raised together with those of this one.
    :raises SettingsError: with every problem.
    """
    problems = list(beside)
    if value is None or value is True or value is False:
        if problems:
            raise SettingsError(problems, name)
        return ControlSettings(enabled=value is not False)
    if not isinstance(value, Mapping):
        expected = "a dict, or False to turn control off"
        whole = f"expected {expected}, got {describe(value)}"
        hint = text_hint(value, expected) or f"known: {', '.join(KEYS)}"
        raise SettingsError([*problems, Problem(None, None, whole, hint)], name)
    for key in value:
        if key not in KEYS:
            problems.append(_unknown(key))

    def report(key: str) -> Report:
        return collect(problems, None, key)

    enabled = value.get("ENABLED", True)
    if enabled is not True and enabled is not False:
        refuse(report("ENABLED"), enabled, "True or False")
    directory = _directory(value.get("DIRECTORY"), report("DIRECTORY"))
    key = value.get("KEY")
    if key is not None and (not isinstance(key, str) or len(key) < SHORTEST_KEY):
        found = f"one of {len(key)}" if isinstance(key, str) else f"a {type(key).__name__}"
        report("KEY")(
            f"expected a text of at least {SHORTEST_KEY} characters, got {found}",
            "python -c 'import secrets; print(secrets.token_urlsafe())' makes one",
        )
    broadcast = value.get("BROADCAST")
    if broadcast is not None:
        _check_broadcast(broadcast, aliases, report("BROADCAST"))
        if key is None and len(secret or "") < SHORTEST_KEY:
            has = f"one of {len(secret)} characters" if secret else "none"
            report("BROADCAST")(
                f"commands from other machines are proven by a secret of at least {SHORTEST_KEY} characters, and "
                f"there is {has}",
                "set KEY, or the framework's SECRET_KEY: "
                "python -c 'import secrets; print(secrets.token_urlsafe())' makes one",
            )
    if problems:
        raise SettingsError(problems, name)
    return ControlSettings(enabled, directory, broadcast, key)


def why_unsupported(settings: PoolSettings) -> str | None:
    """Return why commands cannot be carried by the broker of *settings*; ``None`` if they can."""
    if settings.is_amqp or settings.is_redis:
        return None
    return (
        f"the transport {settings.transport!r} cannot carry commands to other machines: "
        "name the alias of a pool on RabbitMQ or Redis"
    )


def _directory(value: Any, report: Report) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | Path) or not str(value):
        refuse(report, value, "a path")
        return None
    if "\0" in str(value) or not Path(value).is_absolute():
        # A relative path would depend on the working directory of each process.
        refuse(report, str(value), "an absolute path")
        return None
    return str(value)


def _check_broadcast(value: Any, aliases: Collection[str], report: Report) -> None:
    if isinstance(value, str) and value in aliases:
        settings = aliases[value] if isinstance(aliases, Mapping) else None
        why = why_unsupported(settings) if isinstance(settings, PoolSettings) else None
        if why is not None:
            report(why, "")
        return
    refuse(report, value, "the alias of a pool", nearest(value, aliases, repr))


def _unknown(key: Any) -> Problem:
    hint = nearest(key.upper() if isinstance(key, str) else key, KEYS)
    return Problem(None, None, f"{describe(key)} is not a setting", hint)
