"""What `expected.toml` says: the suites of other projects, and which of their tests fail on ours."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["EXPECTED", "Expected", "Suite"]

EXPECTED = Path(__file__).with_name("expected.toml")
#: Why a test may fail.
KINDS = ("private name", "mock", "difference", "environment", "fault")


@dataclass(frozen=True)
class Expected:
    """Why some tests fail, and what they fail with.

    :param kind: ``"private name"`` reads a name of kombu with an underscore; ``"mock"`` counts calls of a mock, or
        hands one in; ``"difference"`` is announced in docs/howto/migrate-from-kombu-pools.md; ``"environment"`` fails
        with kombu's pools too, where we run it; ``"fault"`` is ours to mend.
    :param says: is in the error.
    :param since: the first version of the project that has the tests.
    :param before: the first version that has them no more.
    """

    kind: str
    reason: str
    says: str
    tests: tuple[str, ...]
    since: str = "0"
    before: str = "999"

    def is_for(self, version: str) -> bool:
        """Whether a version of the project is meant."""
        return _number(self.since) <= _number(version) < _number(self.before)


@dataclass(frozen=True)
class Suite:
    """Tests of another project.

    :param leased: whether each ``Connection(…)`` that a test makes is one that a pool of ours has lent.
    :param adopted: whether each application of Celery that a test makes publishes over an alias of ours.
    """

    project: str
    files: tuple[str, ...]
    leased: bool = False
    adopted: bool = False
    expected: tuple[Expected, ...] = ()

    @staticmethod
    def read(path: Path) -> dict[str, Suite]:
        """The suites in a file, by name.

        :raises ValueError: for a kind that is none.
        """
        suites = {}
        for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            entries = [
                Expected(**{**entry, "tests": tuple(entry["tests"])})
                for entry in table.pop("expected", ())
            ]
            if wrong := {entry.kind for entry in entries}.difference(KINDS):
                raise ValueError(f"{path.name}: {name}: no kinds of failure: {', '.join(wrong)}")
            files = tuple(table.pop("files"))
            suites[name] = Suite(files=files, expected=tuple(entries), **table)
        return suites


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
