"""Find names in a framework's configuration that were meant for a setting of ours, but are misspelt or out of place.

A misspelt name would be ignored without an error, and a default would hold: a limit of 10, or under DEBUG a broker in
memory. So a name that begins like one of our settings, or resembles one, but is none, is a problem of the settings.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from ..masking import describe
from .parser import CHECKS
from .problems import Problem, closest

__all__ = ["Strays"]

_OURS = re.compile(r"KOMBU[_-]?POOLS?[_-]?(.*)", re.DOTALL)
#: How much a name must resemble a setting if it does not begin like ours.
_ALIKE = 0.85


class Strays:
    """Distinguishes strays from the settings of one configuration, and from names that are not ours.

    :param name: what the dict of aliases is called.
    :param others: the names of the other settings, each with the keys that may stand in it.
    """

    def __init__(self, name: str, others: Mapping[str, Collection[str]]) -> None:
        self._known = (name, *others)
        #: By the end of a wrong name: the setting that was meant, and the right way to write it.
        self._places = {
            key.upper(): (name, f'{name} = {{"default": {{"{key.upper()}": …}}}}') for key in CHECKS
        }
        self._places["DEFAULT"] = name, f'{name} = {{"default": …}}'
        for other, keys in {name: (), **others}.items():
            end = other.removeprefix(name).lstrip("_")
            self._places |= {f"{end}_{key}": (other, f'{other} = {{"{key}": …}}') for key in keys}
            self._places[end] = other, other

    def is_one(self, name: object) -> bool:
        """Whether *name* was meant to be a setting, but is none."""
        if not isinstance(name, str) or name in self._known:
            return False
        upper = name.upper()
        if _OURS.fullmatch(upper):
            return True
        if any(upper.endswith(f"_{one}") for one in self._known):
            # Most likely a variable of the project's own, from which one of our settings is made.
            return False
        # The cheap test comes first: loading difflib takes longer than all else here.
        return ("KOMB" in upper or "POOL" in upper) and bool(closest(upper, self._known, _ALIKE))

    def among(self, names: Iterable[object]) -> Iterator[tuple[str, Problem]]:
        """The strays among *names*: the setting that each is nearest to, and what to tell."""
        for name in sorted(one for one in names if isinstance(one, str) and self.is_one(one)):
            message = f"{describe(name)} is no setting"
            setting, place = self._place_of(name.upper())
            hint = f"did you mean {place}?" if place else f"known: {', '.join(self._known)}"
            yield setting, Problem(None, None, message, hint)

    def _place_of(self, name: str) -> tuple[str, str]:
        match = _OURS.fullmatch(name)
        if match is None:
            near = closest(name, self._known, _ALIKE)
            return near, near
        end = match[1].replace("-", "_").removeprefix("DEFAULT_")
        near = closest(end, self._places) if end else end
        # An alias, perhaps.
        return self._places[near] if near or not end else (self._known[0], "")
