"""Change the settings of pools in use: find what has changed, and replace the pools of those aliases.

``docs/explanation/renewing.md`` has the states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import renewing
from .broker import groups
from .broker.connection import OpenConnection
from .broker.connections import ConnectionPool
from .engine.stats import Drained
from .settings import PoolSettings, Problem, SettingsError

__all__ = ["Change", "Reloaded"]


@dataclass(frozen=True)
class Reloaded:
    """The result of a reload. Each old or new alias is in exactly one of the first four attributes."""

    #: By alias, how many connections of the old pool were closed, and how many are still lent.
    changed: Mapping[str, Drained]
    #: The same for the aliases that are not configured any more.
    gone: Mapping[str, Drained]
    #: The aliases that were not configured before. Their pools connect at their first use.
    new: tuple[str, ...]
    #: The aliases whose settings are the same as before.
    stayed: tuple[str, ...]
    #: With ``force``, by alias: why the new connection could not be opened.
    failures: Mapping[str, Exception] = field(default_factory=dict)


#: The settings that do not concern the connections, and are not part of ``identity``.
_BESIDE_IDENTITY = (
    "acquire_timeout",
    "retry",
    "mandatory",
    "serializer",
    "compression",
    "confirm_timeout",
)


def _same(old: PoolSettings, new: PoolSettings) -> bool:
    # Not old == new, because equal functions in CREDENTIALS may be different objects.
    return old.identity == new.identity and all(
        getattr(old, name) == getattr(new, name) for name in _BESIDE_IDENTITY
    )


class Change:
    """A change from one set of settings to another.

    :param old: the present settings by alias; empty if there are none yet.
    :param new: the new settings by alias.
    """

    def __init__(self, old: Mapping[str, PoolSettings], new: Mapping[str, PoolSettings]) -> None:
        self.old = old
        self.new = new
        self.changed = [
            alias for alias in old if alias in new and not _same(old[alias], new[alias])
        ]
        self.gone = [alias for alias in old if alias not in new]

    def check(self, needed: Collection[str], name: str, *, force: bool) -> None:
        """Check that the new settings can be used.

        :param needed: aliases that must stay.
        :param name: the name of the setting, for errors.
        :raises SettingsError: with every problem.
        """
        problems = [
            Problem(alias, None, "it is gone, but BROADCAST of KOMBU_POOLS_CONTROL names it")
            for alias in self.gone
            if alias in needed
        ]
        if not force:
            problems += [
                Problem(
                    alias,
                    None,
                    "it is gone, but this process uses it",
                    "is its new name misspelt? --force (force=True) takes it away",
                )
                for alias in self.gone
                if alias not in needed and self._is_missed(alias)
            ]
        problems += [
            Problem(alias, "URL", missing)
            for alias, settings in self.new.items()
            if (alias in self.changed or alias not in self.old)
            and (missing := settings.missing_driver())
        ]
        if problems:
            raise SettingsError(problems, name)

    def _is_missed(self, alias: str) -> bool:
        """Return whether this process has used the pool of *alias*, and no alias that stays names it."""
        pool = groups.connections.get(self.old[alias])
        if pool is None or not pool.was_used:
            return False
        stay = [settings for one, settings in self.old.items() if one in self.new]
        return all(groups.connections.get(settings) is not pool for settings in stay)

    def connect(self, timeout: float) -> dict[str, renewing.Kept]:
        """Open a connection in the new pool of each alias whose old pool is used and not suspended.

        :param timeout: seconds for all of them together.
        :returns: the failures by alias. If there are any, all new connections have been closed again.
        """
        wanted: dict[ConnectionPool, list[str]] = {}
        added: list[PoolSettings] = []
        for alias in self.changed:
            old, new = self.old[alias], self.new[alias]
            former = groups.connections.get(old)
            if (
                old.identity == new.identity
                or former is None
                or not former.was_used
                or former.suspended
            ):
                continue
            if groups.connections.get(new) is None:
                added.append(new)
            wanted.setdefault(groups.connections[new], []).append(alias)
        kept: dict[str, renewing.Kept] = {}
        opened: dict[ConnectionPool, OpenConnection] = {}

        def note(pool: ConnectionPool, outcome: OpenConnection | Exception) -> None:
            if not isinstance(outcome, Exception):
                opened[pool] = outcome
                return
            for alias in wanted[pool]:
                stats = groups.connections[self.old[alias]].stats()
                kept[alias] = renewing.Kept(stats.idle + stats.lent, outcome)

        try:
            renewing.try_all(((pool, pool) for pool in wanted), timeout, note)
        except BaseException:
            self._discard(opened, added)
            raise
        if kept:
            self._discard(opened, added)
        else:
            for pool, item in opened.items():
                pool.take_in(item)
        return kept

    def suspend(self) -> None:
        """Suspend each new pool whose old pool is suspended. Call this before look-ups find the new pools."""
        for alias in self.changed:
            former = groups.connections.get(self.old[alias])
            if former is not None and former.suspended:
                groups.connections[self.new[alias]].suspend_as(former)

    @staticmethod
    def _discard(
        opened: Mapping[ConnectionPool, OpenConnection], added: list[PoolSettings]
    ) -> None:
        for pool, item in opened.items():
            pool.close_untaken(item)
        for settings in added:
            groups.connections.drop(settings)

    def retire(self, in_use: Callable[[groups.PoolGroup[Any], PoolSettings], bool]) -> Reloaded:
        """Take the old pools out of use that no alias names any more.

        :param in_use: returns whether an alias names the pool of the given group with the given settings.
        """
        done: dict[str, Drained] = {}
        closed: set[int] = set()
        for alias in (*self.changed, *self.gone):
            old = self.old[alias]
            done[alias] = Drained(0, 0)
            for group in (groups.producers, groups.connections):
                pool = group.get(old)
                if pool is None or in_use(group, old):
                    continue
                group.drop(old)
                if isinstance(pool, ConnectionPool) and id(pool) not in closed:
                    # If aliases share a pool, the first one has the numbers.
                    closed.add(id(pool))
                    done[alias] = pool.replace_by_another()
        return Reloaded(
            changed={alias: done[alias] for alias in self.changed},
            gone={alias: done[alias] for alias in self.gone},
            new=tuple(alias for alias in self.new if alias not in self.old),
            stayed=tuple(
                alias for alias in self.new if alias in self.old and alias not in self.changed
            ),
        )
