"""What processes answer, as data: who it is, what it did, and all of them together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .request import Request

__all__ = ["OUTCOMES", "Answer", "Answers", "Process", "named_in_vain"]

#: What came of asking a process.
OUTCOMES: Mapping[str, str] = {
    "done": "it did what it was told, for each of the pools",
    "failed": "it failed for some of the pools, or as a whole: error, or the rows, say why",
    "silent": "it did not answer in time; it may do it yet",
}


#: What may stand for a type in JSON.
_TYPES: Mapping[str, Any] = {"str": str, "int": int, "float": (int, float)}


def _is_mapping(given: Any) -> bool:
    return isinstance(given, Mapping)


@dataclass(frozen=True)
class Process:
    """A process that has pools."""

    #: Different for all the processes that ever were.
    name: str
    #: The name of its machine, or container.
    host: str
    #: Its number, where it runs: in another container the same number is another process.
    pid: int
    #: What it is part of: ``"gunicorn"``, ``"uwsgi"``, ``"celery"``, ``"uvicorn"``, …, or the program's name.
    server: str = ""
    #: What it is there: ``"worker"``, ``"gevent worker"``, ``"master"``, ….
    kind: str = ""
    #: When it began, in seconds since 1970.
    started: float = 0.0
    #: The version of this library.
    version: str = ""

    @classmethod
    def from_dict(cls, given: Any) -> Process:
        """From plain data that a process sent; keys that are not known are of a newer version, and left alone.

        :raises ValueError: if it is none.
        """
        types = {str(one.name): _TYPES[str(one.type)] for one in fields(cls)}
        known = {key: given[key] for key in given if key in types} if _is_mapping(given) else {}
        if not {"name", "host", "pid"} <= known.keys() or not all(
            isinstance(value, types[key]) and not isinstance(value, bool)
            for key, value in known.items()
        ):
            raise ValueError("it does not say which process it is")
        return cls(**known)

    def is_named(self, request: Request) -> bool:
        """Whether *request* is for this process."""
        return (not request.hosts or self.host in request.hosts) and (
            not request.processes or any(map(self.is_called, request.processes))
        )

    def is_called(self, name: str) -> bool:
        """Whether *name* is its number or its name."""
        return name in (str(self.pid), self.name)

    @property
    def place(self) -> tuple[str, int, str]:
        """What processes are sorted by: machine and number."""
        return self.host, self.pid, self.name


def named_in_vain(request: Request, processes: Collection[Process]) -> tuple[list[str], list[str]]:
    """The machines, and the processes, that *request* names and that none of *processes* is."""
    hosts = [name for name in request.hosts if all(one.host != name for one in processes)]
    numbers = [
        name for name in request.processes if not any(one.is_called(name) for one in processes)
    ]
    return hosts, numbers


@dataclass(frozen=True)
class Answer:
    """What one process did."""

    process: Process
    #: One of :data:`OUTCOMES`.
    outcome: str
    #: A row for each pool: of :mod:`~kombu_pools_ext.control.local`, as plain data.
    rows: tuple[dict[str, Any], ...] = ()
    #: Why it failed as a whole, in a line; ``None`` if it did not.
    error: str | None = None
    #: From asking to its answer; ``None`` for one that is silent.
    seconds: float | None = None

    @property
    def ok(self) -> bool:
        """Whether it did all that it was told."""
        return self.outcome == "done"

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Any, process: Process, seconds: float | None = None) -> Answer:
        """From what *process* sent, *seconds* after it was asked.

        :raises ValueError: if it is none.
        """
        outcome = given.get("outcome") if _is_mapping(given) else None
        if not isinstance(outcome, str) or outcome not in OUTCOMES:
            raise ValueError("its answer is none")
        rows, error = given.get("rows", ()), given.get("error")
        if (
            not isinstance(rows, list | tuple)
            or not all(map(_is_mapping, rows))
            or not (error is None or isinstance(error, str))
        ):
            raise ValueError("its answer is damaged")
        return cls(process, outcome, tuple(map(dict, rows)), error, seconds)


@dataclass(frozen=True)
class Answers:
    """What all the processes did, sorted by machine and number."""

    request: Request
    answers: tuple[Answer, ...] = ()
    #: What kept whole machines from being asked, each in a line: a broker that is down, a directory that is not ours.
    problems: tuple[str, ...] = ()
    #: From asking to the last answer.
    seconds: float = field(default=0.0, compare=False)

    @property
    def ok(self) -> bool:
        """Whether every process did all of it; a command that changes something needs at least one process."""
        done = all(answer.ok for answer in self.answers)
        return not self.problems and done and (bool(self.answers) or not self.request.changes)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "action": self.request.command,
            "ok": self.ok,
            "seconds": round(self.seconds, 6),
            "processes": [answer.as_dict() for answer in self.answers],
            "problems": list(self.problems),
        }
