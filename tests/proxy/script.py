"""What a script may say, and what is wrong with one."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .frames import KINDS, METHODS, Frame

__all__ = ["ACTIONS", "BOTH", "TO_CLIENT", "TO_SERVER", "BadScript", "Step", "read"]

TO_SERVER, TO_CLIENT = "to the server", "to the client"
BOTH = (TO_SERVER, TO_CLIENT)

SECONDS, MASK = "seconds", "a byte"

#: What a step may do, and what it needs to know for it.
#: Those of the first group concern the step's direction, those of the second the whole connection.
ACTIONS: dict[str, str | None] = {
    "half-close": None,
    "hold": None,
    "drop": None,
    "delay": SECONDS,
    "drip": SECONDS,
    "garble": MASK,  # flips these bits of the byte at this place
    "cut": None,
    "reset": None,
    "silence": None,
    "heal": None,
}


class BadScript(ValueError):
    """A script that cannot be played; `problems` has all that is wrong with it."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Step:
    """One step of a script that has been read."""

    direction: str
    place: int | Frame
    action: str
    argument: Any = None


def read(script: Any) -> list[Step]:
    """The steps of a script.

    :param script: ``(direction, place, action)`` or ``(direction, place, action, argument)`` for each step.
    :raises BadScript: with everything that is wrong with it.
    """
    if isinstance(script, str | bytes) or not isinstance(script, Iterable):
        raise BadScript([f"a script is a list of steps, not {script!r}"])
    steps, problems = [], []
    for number, one in enumerate(script, 1):
        wrong = _problems(one)
        if wrong:
            problems += [f"step {number}: {problem}" for problem in wrong]
        else:
            steps.append(Step(*one))
    if problems:
        raise BadScript(problems)
    return steps


def _problems(step: Any) -> list[str]:
    if not isinstance(step, tuple) or len(step) not in (3, 4):
        return [f"(direction, place, action) is wanted, perhaps with an argument, not {step!r}"]
    direction, place, action, *arguments = step
    problems = []
    if not _one_of(direction, BOTH):
        problems.append(f"no direction: {direction!r}{_nearest(direction, BOTH)}")
    problems += _problems_of_place(place)
    if not _one_of(action, ACTIONS):
        problems.append(f"no action: {action!r}{_nearest(action, ACTIONS)}")
    else:
        problems += _problems_of_arguments(action, arguments)
    return problems


def _problems_of_place(place: Any) -> list[str]:
    if isinstance(place, Frame):
        problems = []
        if not (_number(place.which) and place.which >= 0) and not _one_of(
            place.which, (*KINDS, *METHODS)
        ):
            near = _nearest(place.which, (*KINDS, *METHODS))
            problems.append(f"no frame: {place.which!r}{near}")
        if not _number(place.at):
            problems.append(f"no place in a frame: {place.at!r}")
        return problems
    if _number(place) and place >= 0:
        return []
    return [f"no place: {place!r}; a number of bytes or a Frame is wanted"]


def _problems_of_arguments(action: str, arguments: list[Any]) -> list[str]:
    wanted = ACTIONS[action]
    if wanted is None:
        return [f"{action!r} takes no argument: {arguments[0]!r}"] if arguments else []
    if not arguments:
        return [f"{action!r} wants {wanted}"]
    value = arguments[0]
    if wanted is MASK:
        good = _number(value) and 1 <= value <= 255
    else:
        good = (_number(value) or isinstance(value, float)) and 0 <= value < math.inf
    return [] if good else [f"{action!r} wants {wanted}, not {value!r}"]


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(value: Any, known: Iterable[str]) -> bool:
    return isinstance(value, str) and value in known


def _nearest(value: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(value), list(known), 1)
    return f"; {near[0]!r}?" if near else ""
