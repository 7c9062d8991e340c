"""Comparing a message with what a test expects of it, and telling how they differ."""

from __future__ import annotations

import difflib
import pprint
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .publication import Publication

__all__ = ["Expected"]

#: What is not compared.
UNSAID: Any = object()
#: Messages that a failure shows.
MOST_SHOWN = 3
#: Characters of a line in that.
WIDTH = 100


def _is_predicate(wanted: Any) -> bool:
    # A matcher, such as unittest.mock.ANY, compares itself, and may be callable, too.
    kind: Any = type(wanted)
    return callable(wanted) and not any("__eq__" in vars(one) for one in kind.__mro__[:-1])


def _equal(wanted: Any, value: Any) -> bool:
    if _is_predicate(wanted):
        return bool(wanted(value))
    return bool(wanted == value) or bool(_like_json(wanted) == _like_json(value))


def _like_json(value: Any) -> Any:
    """Return *value* with lists in the place of tuples, as serializers make them."""
    if isinstance(value, list | tuple):
        return [_like_json(one) for one in value]
    if isinstance(value, dict):
        return {key: _like_json(one) for key, one in value.items()}
    return value


def _shown(value: Any) -> str:
    if _is_predicate(value):
        return f"<{getattr(value, '__name__', value)}>"
    return pprint.pformat(value, width=WIDTH, sort_dicts=True)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a test expects of a message.

    A value is compared, or called with the message's own if it is a function. Of headers and properties, those that are
    named count.
    """

    body: Any = UNSAID
    routing_key: Any = UNSAID
    exchange: Any = UNSAID
    headers: Mapping[str, Any] | Callable[[Any], bool] | None = None
    properties: Mapping[str, Any] | None = None
    using: Any = UNSAID
    queue: str | None = None
    outcome: Any = UNSAID
    on_commit: Any = UNSAID
    task: Any = UNSAID

    def _wanted(self) -> list[tuple[str, Any, Callable[[Publication], Any]]]:
        """The name, the wanted value, and what gives a message's own, of all that is compared."""
        simple = {
            "exchange": (self.exchange, lambda one: one.exchange),
            "routing_key": (self.routing_key, lambda one: one.routing_key),
            "using": (self.using, lambda one: one.alias),
            "outcome": (self.outcome, lambda one: one.outcome),
            "on_commit": (self.on_commit, lambda one: one.on_commit),
            "body": (self.body, lambda one: one.body),
            "task": (self.task, lambda one: one.task and one.task.name),
        }
        found: list[Any] = [
            (name, wanted, get) for name, (wanted, get) in simple.items() if wanted is not UNSAID
        ]
        if callable(self.headers):
            found.append(("headers", self.headers, lambda one: one.headers))
        elif self.headers is not None:
            found += [
                (f"headers[{name!r}]", wanted, lambda one, name=name: one.headers.get(name))
                for name, wanted in self.headers.items()
            ]
        found += [
            (f"properties[{name!r}]", wanted, lambda one, name=name: one.properties.get(name))
            for name, wanted in (self.properties or {}).items()
        ]
        return found

    def differences(self, one: Publication) -> list[tuple[str, Any, Any]]:
        """The name, the wanted value and the message's own of all that differs."""
        found = [
            (name, wanted, value)
            for name, wanted, get in self._wanted()
            if not _equal(wanted, value := get(one))
        ]
        if self.queue is not None and self.queue not in one.queues:
            found.append(("queues", self.queue, one.queues))
        return found

    def matches(self, one: Publication) -> bool:
        """Whether *one* is what is expected."""
        return not self.differences(one)

    def __str__(self) -> str:
        parts = [f"{name}={_shown(wanted)}" for name, wanted, _ in self._wanted()]
        if self.queue is not None:
            parts.append(f"queue={self.queue!r}")
        return ", ".join(parts) or "any message"

    # -- failures -----------------------------------------------------------------------------------------

    def told(self, published: list[Publication]) -> str:
        """Tell what was published instead, the nearest first, and how it differs."""
        if not published:
            return "nothing was published"
        nearest = sorted(published, key=self._distance)
        shown = [self._compared(one) for one in nearest[:MOST_SHOWN]]
        more = len(published) - len(shown)
        if more:
            shown.append(f"and {more} more")
        return "\n\n".join([f"{len(published)} published, the nearest first:", *shown])

    def _distance(self, one: Publication) -> tuple[int, float]:
        differences = self.differences(one)
        unlike = 0.0
        for _, wanted, value in differences:
            ratio = difflib.SequenceMatcher(None, _shown(wanted), _shown(value)).ratio()
            unlike += 1 - ratio
        return len(differences), unlike

    def _compared(self, one: Publication) -> str:
        lines = [described(one)]
        for name, wanted, value in self.differences(one):
            lines.append(f"  {name} differs:")
            diff = difflib.ndiff(_shown(wanted).splitlines(), _shown(value).splitlines())
            lines += [f"    {line.rstrip()}" for line in diff]
        return "\n".join(lines)


def described(one: Publication) -> str:
    """Return a line about *one*."""
    where = f"exchange {one.exchange!r}, " if one.exchange else ""
    body = _shown(one.body)
    if len(body) > WIDTH:
        body = f"{body[:WIDTH]}…"
    reached = ", ".join(one.queues) or "no queue"
    reason = f": {one.reason}" if one.reason else ""
    return f"{where}routing key {one.routing_key!r}, alias {one.alias!r}: {body} ({one.outcome}{reason}; {reached})"
