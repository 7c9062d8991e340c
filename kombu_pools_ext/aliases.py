"""Pools by alias: what a framework, or plain Python, configures once and names from then on.

A :class:`Pools` keeps no pool itself. It turns an alias into settings, and asks the shared groups
:data:`kombu_pools_ext.connections` and :data:`kombu_pools_ext.producers` for the pool with those: so two Flask apps,
Django and plain code in one process share a pool where they name the same broker with the same settings.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import kombu

from . import events, renewing
from .broker import groups
from .broker.arguments import checked
from .broker.confirms import new_message_id
from .broker.connections import ConnectionPool
from .broker.identity import NOTE
from .broker.own_errors import raised_by_carrier
from .broker.pool_group import Finder
from .broker.validate import valid_seconds
from .engine.counters import Drained
from .engine.weakly import snapshot
from .errors import ConnectionsKept
from .reloading import Change, Reloaded
from .settings import PoolSettings, SettingsError, parse_settings
from .settings.problems import forgets_arguments
from .settings.sources import can_change, is_function

__all__ = ["AliasedPools", "Pools", "configure"]

#: Stands for "as ACQUIRE_TIMEOUT says".
_AS_CONFIGURED: Any = object()
#: Seconds that a reload waits for callers that have looked a pool up and are about to acquire.
SETTLED = 0.05
#: Every set of this process, as long as it lives.
_all: weakref.WeakSet[Pools] = weakref.WeakSet()
#: The one that names the groups' aliases.
_configured: weakref.ref[Pools] | None = None


#: For ``Pools()`` without settings, which is fine. An empty dict that somebody passes is a mistake.
_NONE_GIVEN: dict[str, Any] = {}


class AliasedPools(Finder, Mapping[Any, Any]):
    """One of the two shared groups, by alias. Takes a URL, a list of URLs or a Connection as well, as the group does.

    Iterating gives the aliases; looking one up makes its pool, without connecting.
    """

    def __init__(self, pools: Pools, group: groups.PoolGroup) -> None:
        super().__init__()
        self._pools = pools
        #: The shared group behind it.
        self.group = group
        self._keys: dict[str, tuple[PoolSettings, Any]] = {}
        group._add_finder(self)

    def _find(self, resource: Any, names: dict[Any, Any]) -> Any:
        if not isinstance(resource, str):
            pool: Any = self.group[resource]
            note = resource.__dict__.get(NOTE) if isinstance(resource, kombu.Connection) else None
            # The group has noted what the key means, if it is one that can be.
            if note is not None and self.group._names.get(note.token) is pool:
                names[note.token] = pool
            return pool
        if "://" in resource:
            # Whoever looks a URL up asks for no settings, be they right or wrong.
            pool = self.group[resource]
        else:
            one = self._pools.settings_of(resource)
            pool = dict.get(self.group, self.key_of(resource, one))
            if pool is None:
                pool = self.group[one]
        names[resource] = pool
        return pool

    def key_of(self, alias: str, settings: PoolSettings) -> Any:
        """The group's key for the *settings* of *alias*: made once, for that takes longer than a lease."""
        known = self._keys.get(alias)
        # Settings and key are one value: a reload in another thread may come between two steps.
        if known is None or known[0] is not settings:
            known = self._keys[alias] = settings, self.group.key(settings)
        return known[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pools.settings)

    def __len__(self) -> int:
        return len(self._pools.settings)

    def __contains__(self, name: object) -> bool:
        return name in self._pools.settings

    def __repr__(self) -> str:
        return f"<{type(self.group).__name__} by alias of {self._pools!r}>"


class Pools:
    """A set of aliases over the shared groups.

    :param settings: the dict of ``docs/reference/settings.md``; or where it comes from, now and at each :meth:`reload`:
        a function that returns it, or a dotted path to one, which is called at the first use; or a JSON or TOML file.
    :param aliases: the same as keywords: ``Pools(default={"url": "amqp://localhost//"})``.
    :param name: the name of the setting, for errors.
    :raises SettingsError: with every problem, at once for a dict or a file, at the first use for a function.
    """

    @forgets_arguments
    def __init__(
        self,
        settings: Mapping[str, Any] | Callable[[], Any] | str | Path | None = None,
        /,
        *,
        name: str = "KOMBU_POOLS",
        **aliases: Any,
    ) -> None:
        if aliases and not isinstance(settings, Mapping | None):
            raise TypeError(
                "keywords for aliases can only be combined with a dict of other aliases"
            )
        #: What the setting is called where it comes from.
        self.name = name
        self._settings: dict[str, PoolSettings] | None = None
        self._turns: dict[tuple[int, str], object] = {}
        if settings is not None and not isinstance(settings, Mapping):
            self._source: Callable[[], Any] = lambda: settings
            if not is_function(settings):
                self._settings = self._parse()
        else:
            given = {**(settings or {}), **aliases}
            self._source = lambda: given
            if settings is None and not aliases:
                given = _NONE_GIVEN
            self._settings = self._parse()
        #: The connection pools, by alias.
        self.connections = AliasedPools(self, groups.connections)
        #: The producer pools, by alias.
        self.producers = AliasedPools(self, groups.producers)
        _all.add(self)

    @property
    def settings(self) -> Mapping[str, PoolSettings]:
        """The settings, by alias.

        :raises SettingsError: with every problem.
        """
        settings = self._settings
        if settings is None:
            settings = self._settings = self._parse()
        return settings

    def _given(self) -> Any:
        """What the settings are read from: a dict, a function or a path."""
        return self._source()

    def _parse(self) -> dict[str, PoolSettings]:
        value = self._given()
        return {} if value is _NONE_GIVEN else parse_settings(value, name=self.name)

    def settings_of(self, alias: str) -> PoolSettings:
        """The settings of *alias*.

        :raises UnknownAlias: with the known ones, and the nearest.
        """
        try:
            return self.settings[alias]
        except KeyError:
            raise groups.unknown_alias(alias, self.settings) from None

    @property
    def can_change(self) -> bool:
        """Whether a :meth:`reload` may find other settings: they come from a function or a file, not from a dict."""
        return can_change(self._given())

    def reload(
        self,
        *,
        timeout: float = renewing.TIMEOUT,
        force: bool = False,
        needed: Collection[str] = (),
    ) -> Reloaded:
        """Read the settings anew and replace the pools whose settings have changed; the others keep their connections.

        For each changed alias whose pool is in use, a new connection is opened first, beyond its limit. Only when all
        of them are open are the new settings in force. Then the old pools close their idle connections, and lent ones
        when they come back. Callers that wait in an old pool are still served there.

        :param timeout: seconds for the new connections of all aliases together.
        :param force: take the new settings even if no connection can be opened with them, or an alias is gone that this
            process uses.
        :param needed: aliases that must not be gone, whatever *force* says.
        :returns: which aliases changed, stayed, came and went.
        :raises SettingsError: with every problem of the new settings; the old ones are still in force.
        :raises ConnectionsKept: if a new connection cannot be opened; the old settings are still in force.
        :raises RuntimeError: if another thread is reloading.
        :raises Exception: whatever the function that returns the settings raises; the old ones are still in force.
        """
        timeout = valid_seconds(timeout)
        # By process: a child that is forked in the middle must not wait for a thread that it does not have.
        turn, me = (os.getpid(), "reload"), object()
        if self._turns.setdefault(turn, me) is not me:
            # Its repr would read the settings.
            raise RuntimeError(f"{self.name} is being reloaded by another thread")
        try:
            return self._reload(timeout, force, needed)
        finally:
            del self._turns[turn]

    def _reload(self, timeout: float, force: bool, needed: Collection[str]) -> Reloaded:
        new = self._parse()
        change = Change(self._settings or {}, new)
        change.check(needed, self.name, force=force)
        kept = change.connect(timeout)
        if kept and not force:
            raise _kept(kept, new, " and its settings")
        change.suspend()
        self._settings = new
        if _configured is not None and _configured() is self:
            groups.name_aliases(new)
        self.connections.forget_names()
        self.producers.forget_names()
        if change.changed or change.gone:
            # A caller that has just looked up an old pool may still take a connection from it.
            time.sleep(SETTLED)
        done = change.retire(self._is_named)
        if change.changed or change.gone or done.new:
            events.pools_reset.send(reason="settings")
        return replace(done, failures={alias: one.error for alias, one in kept.items()})

    def _is_named(self, group: groups.PoolGroup, settings: PoolSettings) -> bool:
        """Whether settings in force, of any set of aliases, lead to the pool of *group* with *settings*."""
        key = group.key(settings)
        every = [
            groups.named_settings(),
            *(pools._settings or {} for pools in snapshot(lambda: _all)),
        ]
        return any(group.key(one) == key for named in every for one in named.values())

    def forget_settings(self) -> None:
        """Read the settings anew at the next use, and drain the pools that were made by the old ones.

        This is a :meth:`reload` for tests that change settings: it opens no new connections first.
        """
        settings, self._settings = self._settings, None
        self.connections.forget_names()
        self.producers.forget_names()
        for one in (settings or {}).values():
            for group in (groups.producers, groups.connections):
                pool = group.get(one)
                if pool is not None:
                    pool.force_close_all(close_pool=False)
                    group.discard(one)
        events.pools_reset.send(reason="settings")

    def publish(
        self,
        body: Any,
        routing_key: str | kombu.Queue | None = None,
        *,
        exchange: str | kombu.Exchange | None = None,
        using: str = "default",
        acquire_timeout: float | None = _AS_CONFIGURED,
        **kwargs: Any,
    ) -> None:
        """Publish one message: take a producer, publish, give it back.

        With confirms it returns when the broker has the message. A publish whose connection broke is tried again on
        another connection, as ``RETRY`` says, with the same ``message_id``, so that a consumer can drop a duplicate.
        A message that the broker has no queue for is an error where ``mandatory`` or ``MANDATORY`` says so, which is by
        default for the default exchange. It takes at most ``acquire_timeout`` and ``CONFIRM_TIMEOUT`` together. All
        arguments are checked before anything is opened or sent, on each transport by AMQP's rules.

        :param body: whatever the serializer takes.
        :param routing_key: text of at most 255 bytes; a :class:`kombu.Queue` stands for its name.
        :param exchange: name or :class:`kombu.Exchange`; by default the default exchange, whose routing key is a
            queue's name.
        :param using: the alias.
        :param acquire_timeout: seconds to wait for a producer; ``None`` is without end.
        :param kwargs: those of :meth:`kombu.Producer.publish`, which AMQP's properties are among; ``declare`` may be
            one entity.
        :raises TypeError: for a keyword that is not known, with the nearest, and for a value of a wrong type.
        :raises ValueError: if there is neither a routing key nor an exchange, and for a value that is out of range.
        :raises LimitExceeded: if no producer became free in time.
        :raises OperationalError: if the broker cannot be reached; :class:`~.PublishNacked`, :class:`~.PublishReturned`,
            :class:`~.PublishRefused` and :class:`~.PublishUnknown`, which says that the message may be there, are
            among them.
        :raises ValueError: for headers that a frame of the broker has no room for.
        """
        routing_key, exchange, kwargs = checked(routing_key, exchange, kwargs, body)
        if acquire_timeout is _AS_CONFIGURED:
            acquire_timeout = self.settings_of(using).acquire_timeout
        message_id = kwargs.get("message_id")
        if message_id is None:
            message_id = kwargs["message_id"] = new_message_id()
        became = "was not sent; it is not in the broker"
        try:
            with self._lender(using).acquire(
                block=acquire_timeout is None, timeout=acquire_timeout
            ) as producer:
                became = ""
                producer.publish(body, routing_key=routing_key, exchange=exchange, **kwargs)
                became = "was published before that"
        except BaseException as error:
            # Before and after the publish, whose own errors say what became of the message.
            if became and not (isinstance(error, Exception) and raised_by_carrier(error)):
                error.add_note(f"alias {using!r}: interrupted; message {message_id} {became}")
            raise

    def _lender(self, using: str) -> Any:
        """What :meth:`publish` acquires its producer from; a framework may have lent one already."""
        return self.producers[using]

    def aliases_of(self, pool: Any) -> tuple[str, ...]:
        """The aliases that name *pool*, a connection pool; makes none, and knows one that a reset took out too."""
        former = groups.connections._former
        return tuple(
            alias
            for alias, settings in self.settings.items()
            if former.get(self.connections.key_of(alias, settings)) is pool
        )

    def pools_of(self, using: Sequence[str] | None = None) -> dict[str, ConnectionPool]:
        """The connection pools of these aliases, or of all.

        :raises UnknownAlias: for one that is not configured.
        :raises TypeError: for a single alias, and for a number that is meant as a time-out.
        """
        if isinstance(using, str | int | float):
            one = isinstance(using, str)
            hint = (
                f"did you mean [{using!r}]?"
                if one
                else "a time-out is drain()'s and wait_ready()'s"
            )
            raise TypeError(f"using must be a list of aliases, not {using!r}; {hint}")
        return {alias: self.connections[alias] for alias in (using or self.settings)}

    def reset(
        self,
        using: Sequence[str] | None = None,
        *,
        reason: str = "api",
        timeout: float = renewing.TIMEOUT,
        force: bool = False,
    ) -> dict[str, Drained]:
        """Close the connections of these aliases, or of all: idle ones now, lent ones when they come back.

        Each pool that has connections opens a new one first, beyond its limit; if that fails, it keeps the old ones.
        A suspended pool opens none, and closes its idle connections.

        :param timeout: seconds for the new connections of all pools together.
        :param force: close the old connections without opening a new one first.
        :returns: by alias, how many connections were closed and how many are still lent; if aliases
            share a pool, the first one has its numbers.
        :raises ConnectionsKept: if a pool keeps its connections; the others were reset.
        :raises UnknownAlias: for an alias that is not configured; nothing has happened then.
        """
        timeout = valid_seconds(timeout)
        pools = self.pools_of(using)
        done = renewing.renew(pools.values(), timeout, force=force)
        events.pools_reset.send(reason=reason)
        kept: dict[str, renewing.Kept] = {}
        drained: dict[str, Drained] = {}
        for alias, pool in pools.items():
            outcome = done[pool]
            if isinstance(outcome, Exception):
                raise outcome
            if isinstance(outcome, renewing.Kept):
                kept[alias] = outcome
            else:
                drained[alias] = outcome
                done[pool] = Drained(0, outcome.lent)
        if kept:
            raise _kept(kept, self.settings)
        return drained

    def suspend(
        self, using: Sequence[str] | None = None, mode: Literal["fail", "wait"] = "wait"
    ) -> None:
        """Lend and open nothing for these aliases, or for all, until :meth:`resume`; what is lent comes back as ever.

        An alias that shares its pool with another is suspended with it.

        :param mode: whoever asks, or waits already, is to ``"wait"`` for the end until his time-out, or to ``"fail"``
            at once with :class:`~.PoolSuspended`, as whoever has no time-out does in both.
        :raises ValueError: for another mode.
        :raises UnknownAlias: for one that is not configured; nothing has happened then.
        """
        for pool in self.pools_of(using).values():
            pool.suspend(mode)

    def resume(self, using: Sequence[str] | None = None) -> None:
        """End :meth:`suspend` for these aliases, or for all: those who waited meanwhile come first.

        :raises UnknownAlias: for one that is not configured; nothing has happened then.
        """
        for pool in self.pools_of(using).values():
            pool.resume()

    def wait_ready(self, timeout: float, using: Sequence[str] | None = None) -> None:
        """Return when each of these aliases, or all, has ``MIN_IDLE`` connections open, or one where none is asked for.

        It waits for one pool after the other, through an outage however long that has lasted, and through a refusal:
        the user may be added meanwhile.

        :param timeout: seconds for all of them together.
        :raises ConnectTimeout: if one has fewer by then; ``__cause__`` is what its last attempt failed of.
        :raises PoolSuspended: if one is suspended, and not resumed by then.
        :raises UnknownAlias: for one that is not configured.
        :raises TypeError, ValueError: for a *timeout* that is none.
        """
        deadline = time.monotonic() + valid_seconds(timeout)
        for pool in self.pools_of(using).values():
            pool.wait_ready(max(0.0, deadline - time.monotonic()))

    def drain(
        self, timeout: float | None = None, using: Sequence[str] | None = None
    ) -> dict[str, Drained]:
        """Close what is idle now, and what is lent when it comes back, and wait for that; the pools stay usable.

        A :meth:`reset` that waits. All begin at once, and new connections are opened for whoever asks meanwhile, unless
        the pools are suspended.

        :param timeout: seconds to wait for what is lent, for all pools together; ``None`` is not to wait.
        :returns: by alias, how many connections were closed and how many are still lent; aliases that share a pool
            have its numbers both.
        :raises UnknownAlias: for one that is not configured; nothing has happened then.
        :raises TypeError, ValueError: for a *timeout* that is none.
        """
        deadline = None if timeout is None else time.monotonic() + valid_seconds(timeout)
        pools = self.pools_of(using)
        begun = {pool: pool.begin_drain() for pool in dict.fromkeys(pools.values())}
        done = {pool: finish(deadline) for pool, finish in begun.items()}
        events.pools_reset.send(reason="api")
        return {alias: done[pool] for alias, pool in pools.items()}

    def __repr__(self) -> str:
        try:
            return f"<{type(self).__name__}: {', '.join(self.settings)}>"
        except SettingsError as error:
            return f"<{type(self).__name__}: {len(error.problems)} problems in {self.name}>"


def _kept(
    kept: Mapping[str, renewing.Kept], tried: Mapping[str, PoolSettings], more: str = ""
) -> ConnectionsKept:
    words = "; ".join(f"alias {alias!r} {one.told(more=more)}" for alias, one in kept.items())
    errors = {alias: one.error for alias, one in kept.items()}
    words = f"{words}; force=True closes them in any case"
    error = ConnectionsKept(words, errors, {alias: tried[alias] for alias in kept})
    error.__cause__ = next(iter(errors.values()))
    return error


@forgets_arguments
def configure(
    settings: Mapping[str, Any] | Callable[[], Any] | str | Path | None = None,
    /,
    **aliases: Any,
) -> Pools:
    """Configure this process's aliases, for plain Python: the shared groups understand them from now on.

    ::

        configure(default={"url": "amqp://guest:guest@localhost//", "limit": 20})
        with producers["default"].acquire(timeout=5) as producer: ...

    :returns: the same aliases as a :class:`Pools`.
    :raises SettingsError: with every problem; what was configured before still holds then.
    """
    global _configured
    pools = Pools(settings, **aliases)
    groups.name_aliases(pools.settings)
    _configured = weakref.ref(pools)
    return pools
