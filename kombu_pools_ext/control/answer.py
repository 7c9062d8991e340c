"""The answers of processes to a command, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .process_info import Process
from .request import Request

__all__ = ["OUTCOMES", "Answer", "Answers"]

#: The outcomes of a command in one process.
OUTCOMES: Mapping[str, str] = {
    "done": "it carried out the command for all of its pools",
    "failed": "it failed for some of the pools, or as a whole: error, or the rows, say why",
    "silent": "it did not answer in time; it may carry out the command later",
}


def _is_mapping(given: Any) -> bool:
    return isinstance(given, Mapping)


@dataclass(frozen=True)
class Answer:
    """The answer of one process."""

    process: Process
    #: One of :data:`OUTCOMES`.
    outcome: str
    #: A row for each pool, as :mod:`~kombu_pools_ext.control.local` makes them, as plain data.
    rows: tuple[dict[str, Any], ...] = ()
    #: Why it failed as a whole, in one line; ``None`` if it did not.
    error: str | None = None
    #: Seconds until it answered; ``None`` if it is silent.
    seconds: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the process carried out the whole command."""
        return self.outcome == "done"

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Any, process: Process, seconds: float | None = None) -> Answer:
        """Make an answer of the plain data that *process* sent, *seconds* after it was asked.

        :raises ValueError: if it is not an answer.
        """
        outcome = given.get("outcome") if _is_mapping(given) else None
        if not isinstance(outcome, str) or outcome not in OUTCOMES:
            raise ValueError("its answer is not valid")
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
    """The answers of all processes, sorted by machine and process number."""

    request: Request
    answers: tuple[Answer, ...] = ()
    #: A line for each failure to reach processes, such as a broker that is down, or a directory that is not safe.
    problems: tuple[str, ...] = ()
    #: Seconds until the last answer.
    seconds: float = field(default=0.0, compare=False)

    @property
    def ok(self) -> bool:
        """Whether all processes carried out the command. A command that changes something needs at least one."""
        done = all(answer.ok for answer in self.answers)
        return not self.problems and done and (bool(self.answers) or not self.request.changes)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        return {
            "action": self.request.command,
            "ok": self.ok,
            "seconds": round(self.seconds, 6),
            "processes": [answer.as_dict() for answer in self.answers],
            "problems": list(self.problems),
        }
