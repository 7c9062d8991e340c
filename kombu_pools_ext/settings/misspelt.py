"""Find misspelt names of our settings in a framework's configuration.

Without this, a misspelt name would be ignored, and a default would be used: a limit of 10, or under DEBUG a broker in
memory. So a name that begins like one of our settings, or resembles one, is reported as an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from ..masking import describe
from .parser import CHECKS
from .problems import Problem, closest, suggestion

__all__ = ["MisspeltNames"]

_OURS = re.compile(r"KOMBU[_-]?POOLS?[_-]?(.*)", re.DOTALL)
#: How similar to a setting a name must be if it does not begin like one, from 0 to 1.
_ALIKE = 0.85


class MisspeltNames:
    """Finds the misspelt names of settings in one configuration.

    :param name: the name of the setting with the aliases.
    :param others: the names of the other settings, each with the keys that it may have.
    """

    def __init__(self, name: str, others: Mapping[str, Collection[str]]) -> None:
        self._known = (name, *others)
        #: By what follows our prefix in a wrong name: the setting that was meant, and how to write it.
        self._places = {
            key.upper(): (name, f'{name} = {{"default": {{"{key.upper()}": …}}}}') for key in CHECKS
        }
        self._places["DEFAULT"] = name, f'{name} = {{"default": …}}'
        for other, keys in {name: (), **others}.items():
            end = other.removeprefix(name).lstrip("_")
            self._places |= {f"{end}_{key}": (other, f'{other} = {{"{key}": …}}') for key in keys}
            self._places[end] = other, other

    def includes(self, name: object) -> bool:
        """Return whether *name* was meant to be one of the settings, but is misspelt or in the wrong place."""
        if not isinstance(name, str) or name in self._known:
            return False
        upper = name.upper()
        if _OURS.fullmatch(upper):
            return True
        if any(upper.endswith(f"_{one}") for one in self._known):
            # Most likely a variable of the project, from which it makes one of our settings.
            return False
        # The cheap test comes first, because loading difflib takes longer than everything else here.
        return ("KOMB" in upper or "POOL" in upper) and bool(closest(upper, self._known, _ALIKE))

    def among(self, names: Iterable[object]) -> Iterator[tuple[str, Problem]]:
        """Yield for each misspelt name in *names* the setting that was meant, and the problem to report."""
        for name in sorted(one for one in names if isinstance(one, str) and self.includes(one)):
            message = f"{describe(name)} is not a setting"
            setting, place = self._place_of(name.upper())
            hint = suggestion(place) or f"known: {', '.join(self._known)}"
            yield setting, Problem(None, None, message, hint)

    def _place_of(self, name: str) -> tuple[str, str]:
        match = _OURS.fullmatch(name)
        if match is None:
            near = closest(name, self._known, _ALIKE)
            return near, near
        end = match[1].replace("-", "_").removeprefix("DEFAULT_")
        near = closest(end, self._places) if end else end
        # What is not similar to anything may be an alias.
        return self._places[near] if near or not end else (self._known[0], "")
