"""What a process can be told: a command with its arguments, checked wherever it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..masking import describe

__all__ = ["COMMANDS", "FORCED", "HIGHEST_LIMIT", "LONGEST_TIMEOUT", "MODES", "Request"]

#: What can be done, each with its description.
COMMANDS: Mapping[str, str] = {
    "status": "show each process's pools: connections and totals; connects to no broker",
    "reset": "open one new connection in each pool, then close the old ones: idle ones now, lent ones when they come "
    "back",
    "reload": "read the settings anew; replace the pools whose settings have changed, once each has a new connection",
    "ping": "have each process make a round trip to each broker",
    "limit": "set the most connections that a pool of each process opens",
    "suspend": "lend and open nothing, until resume; what is lent comes back as ever",
    "resume": "end suspend: those who waited meanwhile come first",
}
#: Commands that take ``force``.
FORCED = ("reset", "reload")
#: Commands that change nothing: it is no error if no process is there.
LOOKING = ("status", "ping")
#: Whoever asks a suspended pool is to wait for its end, or to fail at once.
MODES = ("wait", "fail")
#: Of one pool in one process: RabbitMQ gives a connection 100 KiB, and a process has 1,024 descriptors by default.
HIGHEST_LIMIT = 10_000
#: Seconds that a command may be waited for.
LONGEST_TIMEOUT = 3600.0
#: Aliases, processes or hosts that one command may name, and characters of each.
MOST_NAMES, LONGEST_NAME = 1000, 255


@dataclass(frozen=True, kw_only=True)
class Request:
    """A command to processes.

    :raises ValueError: with everything that is wrong, a line for each.
    """

    #: One of :data:`COMMANDS`.
    command: str
    #: Aliases; none means all.
    using: tuple[str, ...] = ()
    #: Of each pool, for ``limit``.
    limit: int | None = None
    #: One of :data:`MODES`, for ``suspend``.
    mode: str = "wait"
    #: For ``reset`` and ``reload``: close the old connections even if no new one can be opened.
    force: bool = False
    #: Processes, by number (``"4711"``) or name; none means all.
    processes: tuple[str, ...] = ()
    #: Machines, by name; none means all.
    hosts: tuple[str, ...] = ()
    #: Seconds from asking until a process that has not answered counts as silent.
    timeout: float = 5.0

    @property
    def changes(self) -> bool:
        """Whether the command changes something, so that it is an error if no process is there."""
        return self.command not in LOOKING

    def __post_init__(self) -> None:
        problems = [*self._of_names(), *self._of_command()]
        if problems:
            raise ValueError("\n".join(problems))

    def _of_names(self) -> list[str]:
        problems = []
        for name in ("using", "processes", "hosts"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Sequence):
                problems.append(f"{name}: expected names, got {describe(given)}")
                continue
            object.__setattr__(self, name, tuple(given))
            if len(given) > MOST_NAMES:
                problems.append(f"{name}: expected at most {MOST_NAMES} names, got {len(given)}")
            problems += [
                f"{name}: expected a name of 1 to {LONGEST_NAME} characters, got {describe(one)}"
                for one in given[:MOST_NAMES]
                if not isinstance(one, str) or not 1 <= len(one) <= LONGEST_NAME
            ]
        return problems

    def _of_command(self) -> list[str]:
        problems = []
        if self.command not in tuple(COMMANDS):  # which takes what has no hash as well
            known = ", ".join(COMMANDS)
            problems.append(f"unknown command {describe(self.command)}: expected one of {known}")
        if self.command == "reload" and self.using:
            problems.append("using: 'reload' takes none, for the settings are read as a whole")
        if self.command == "limit":
            if not _is_int(self.limit) or not 1 <= self.limit <= HIGHEST_LIMIT:  # type: ignore[operator]  # it is one
                problems.append(
                    f"limit: expected a number from 1 to {HIGHEST_LIMIT}, got {describe(self.limit)}"
                )
        elif self.limit is not None:
            problems.append(f"limit: {describe(self.command)} takes none")
        if self.force not in (True, False):
            problems.append(f"force: expected true or false, got {describe(self.force)}")
        elif self.force and self.command in tuple(COMMANDS) and self.command not in FORCED:
            problems.append(f"force: goes with {' and '.join(FORCED)} alone")
        if self.mode not in MODES:
            problems.append(f"mode: expected {' or '.join(MODES)}, got {describe(self.mode)}")
        timeout = self.timeout
        if isinstance(timeout, bool) or not isinstance(timeout, int | float):
            problems.append(f"timeout: expected a number of seconds, got {describe(timeout)}")
        elif not 0 < timeout <= LONGEST_TIMEOUT or math.isnan(timeout):
            problems.append(
                "timeout must be a number of seconds above 0, and at most "
                f"{LONGEST_TIMEOUT:.0f}, not {describe(timeout)}"
            )
        return problems

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, given: Any) -> Request:
        """From plain data that somebody sent; keys that are not known are of a newer version, and left alone.

        :raises ValueError: with everything that is wrong.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"expected a command with its arguments, got {describe(given)}")
        known = {one.name for one in fields(cls)}
        return cls(**{"command": None, **{key: given[key] for key in given if key in known}})


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
