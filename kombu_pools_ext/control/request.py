"""A command with its arguments. It is checked where it is given, and again where it is received."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..masking import describe

__all__ = ["COMMANDS", "FORCED", "HIGHEST_LIMIT", "LONGEST_TIMEOUT", "MODES", "Request"]

#: The commands, each with its description.
COMMANDS: Mapping[str, str] = {
    "status": "show each process's pools: connections and totals; connects to no broker",
    "reset": "open one new connection in each pool, then close the old ones: idle ones now, lent ones when they come "
    "back",
    "reload": "read the settings anew; replace the pools whose settings have changed, once each has a new connection",
    "ping": "have each process make a round trip to each broker",
    "limit": "set the most connections that a pool of each process opens",
    "suspend": "lend and open nothing, until resume; leases that exist go on",
    "resume": "end suspend; callers that waited meanwhile are served first",
}
#: Commands that take ``force``.
FORCED = ("reset", "reload")
#: Commands that change nothing, for which it is not an error if no process is found.
READ_ONLY = ("status", "ping")
#: The modes of ``suspend``.
MODES = ("wait", "fail")
#: The highest limit of one pool in one process. RabbitMQ needs about 100 KiB for a connection.
HIGHEST_LIMIT = 10_000
#: The longest time-out, in seconds.
LONGEST_TIMEOUT = 3600.0
#: The most aliases, processes or hosts that one command may name, and the most characters of a name.
MOST_NAMES, LONGEST_NAME = 1000, 255


@dataclass(frozen=True, kw_only=True)
class Request:
    """A command to processes. Sequences of names become tuples.

    :raises ValueError: with everything that is wrong, a line for each.
    """

    #: One of :data:`COMMANDS`.
    command: str
    #: Aliases; none means all.
    using: Sequence[str] = ()
    #: The limit of each pool, for ``limit``.
    limit: int | None = None
    #: One of :data:`MODES`, for ``suspend``: callers wait until the pool is resumed, or fail at once.
    mode: str = "wait"
    #: For ``reset`` and ``reload``: close the old connections even if no new one can be opened.
    force: bool = False
    #: Processes, by number (``"4711"``) or name; none means all.
    processes: Sequence[str] = ()
    #: Machines, by name; none means all.
    hosts: Sequence[str] = ()
    #: Seconds after which a process that has not answered counts as silent.
    timeout: float = 5.0

    @property
    def changes(self) -> bool:
        """Whether the command changes something, so that it is an error if no process is found."""
        return self.command not in READ_ONLY

    def __post_init__(self) -> None:
        problems = [*self._name_problems(), *self._command_problems()]
        if problems:
            raise ValueError("\n".join(problems))

    def _name_problems(self) -> list[str]:
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

    def _command_problems(self) -> list[str]:
        problems = []
        if self.command not in tuple(
            COMMANDS
        ):  # a tuple, so that values without a hash can be looked up
            known = ", ".join(COMMANDS)
            problems.append(f"unknown command {describe(self.command)}: expected one of {known}")
        if self.command == "reload" and self.using:
            problems.append("using: 'reload' takes none, because the settings are read as a whole")
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
            problems.append(f"force: can only be used with {' and '.join(FORCED)}")
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
        """Return it as plain data, for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, given: Any) -> Request:
        """Make a request of received plain data. Unknown keys come from a newer version, and are ignored.

        :raises ValueError: with everything that is wrong.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"expected a command with its arguments, got {describe(given)}")
        known = {one.name for one in fields(cls)}
        return cls(**{"command": None, **{key: given[key] for key in given if key in known}})


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
