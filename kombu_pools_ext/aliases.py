"""Pools by alias: :class:`Pools` holds the settings of several aliases, and finds the pool of each.

A :class:`Pools` owns no pools. It looks the settings of an alias up in the shared groups
:data:`kombu_pools_ext.connections` and :data:`kombu_pools_ext.producers`. So two Flask apps, Django and plain code in
one process share a pool if they name the same broker with the same settings.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast

from kombu.connection import Connection
from kombu.entity import Exchange, Queue

from . import events, renewing
from .broker import groups
from .broker.arguments import checked
from .broker.connections import ConnectionPool
from .broker.message_id import new_message_id
from .broker.own_errors import raised_by_library
from .broker.pool_key import KEY_CACHE
from .broker.pool_lookup import PoolLookup
from .broker.producers import ProducerPool
from .broker.publish_keywords import MessageKeywords
from .broker.validate import valid_seconds
from .engine.stats import Drained
from .engine.weakrefs import snapshot
from .errors import ConnectionsKept, UnknownAlias
from .relay_report import RelayReport
from .reloading import Change, Reloaded
from .settings import PoolSettings, SettingsError, parse_settings
from .settings.problems import forgets_arguments, suggestion
from .settings.sources import can_change, is_function
from .task_counter import TaskCounter
from .whole_imports import import_whole

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .prepared import PreparedMessage
    from .publisher import SharedRoad
    from .submitting.awaited_future import AwaitedFuture
    from .submitting.submission import Road, Submission

__all__ = ["AliasedPools", "Pools", "configure", "configured_pools", "replace_settings"]

#: Connection pools or producer pools.
P = TypeVar("P")

#: What is imported with the first message that needs it.
_PUBLISHER = f"{__package__}.publisher"
_SUBMITTING = tuple(
    f"{__package__}.submitting.{name}"
    for name in (
        "awaiting",
        "awaited_future",
        "draft",
        "leased_road",
        "shared_submissions",
        "submission",
    )
)
#: The default of *acquire_timeout*, which stands for ``ACQUIRE_TIMEOUT``.
_AS_CONFIGURED: Any = object()
#: Seconds that a reload waits for callers that have looked up an old pool and are about to acquire from it.
LOOKUP_GRACE = 0.05
#: All :class:`Pools` of this process that are alive.
_all: weakref.WeakSet[Pools] = weakref.WeakSet()
#: The :class:`Pools` whose aliases the shared groups understand.
_configured: Pools | None = None
#: What replaces the settings of all :class:`Pools`, where a test wants that.
_replacement: Callable[[dict[str, PoolSettings]], dict[str, PoolSettings]] | None = None
#: The settings of ``Pools()``, which is valid. An empty dict that is passed is reported as a mistake.
_NONE_GIVEN: dict[str, Any] = {}


def _shared_road(pool: ProducerPool) -> SharedRoad | None:
    """Return the shared road of *pool*, imported with its first message; ``None`` if each message takes a lease."""
    if pool.shared_road is None:
        import_whole(_PUBLISHER)
        from .publisher import road_of

        return road_of(pool)
    road: SharedRoad = pool.shared_road
    return road


class AliasedPools(PoolLookup[P], Mapping[Any, P]):
    """Look up the pools of one shared group by alias. URLs, lists of URLs and Connections work as in the group.

    Iterating yields the aliases. Looking an alias up makes its pool, without connecting.
    """

    def __init__(self, pools: Pools, group: groups.PoolGroup[P]) -> None:
        super().__init__()
        self._pools = pools
        #: The shared group that holds the pools.
        self.group = group
        self._keys: dict[str, tuple[PoolSettings, Any]] = {}
        group.add_lookup(self)

    def _find(self, resource: Any, names: dict[Any, P]) -> P:
        if not isinstance(resource, str):
            pool = self.group[resource]
            cache = resource.__dict__.get(KEY_CACHE) if isinstance(resource, Connection) else None
            # The group has noted the pool of this Connection, if it can be noted.
            if cache is not None and self.group._names.get(cache.token) is pool:
                names[cache.token] = pool
            return pool
        if "://" in resource:
            # A URL needs no settings, so it works even if they are wrong.
            pool = self.group[resource]
        else:
            one = self._pools.settings_of(resource)
            found: P | None = dict.get(self.group, self.key_of(resource, one))
            pool = self.group[one] if found is None else found
        names[resource] = pool
        return pool

    def key_of(self, alias: str, settings: PoolSettings) -> Any:
        """Return the group's key for *settings* of *alias*; kept, because making it takes longer than a lease."""
        known = self._keys.get(alias)
        # Settings and key are stored as one value, because another thread may reload between two steps.
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

    :param settings: a dict as in ``docs/reference/settings.md``, or where to read it now and at each :meth:`reload`: a
        function that returns it, or a dotted path to one, which is called at the first use; or a JSON or TOML file.
    :param aliases: settings as keywords: ``Pools(default={"url": "amqp://localhost//"})``.
    :param name: the name of the setting, for errors.
    :raises SettingsError: with every problem; at once for a dict or a file, at the first use for a function.
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
        #: The name of the setting, for errors.
        self.name = name
        self._settings: dict[str, PoolSettings] | None = None
        self._turns: dict[tuple[int, str], object] = {}
        #: The tasks of Celery that were sent, by alias; of each over which an application publishes.
        self.task_counters: dict[str, TaskCounter] = {}
        #: By alias, what a relay of the outbox in this process tells.
        self.relay_reports: dict[str, RelayReport] = {}
        #: What takes the messages that are published without waiting: by alias, and whether over a shared connection.
        self._roads: dict[tuple[str, bool], Road] = {}
        if settings is not None and not isinstance(settings, Mapping):
            self._source: Callable[[], Any] = lambda: settings
            if not is_function(settings):
                self._settings = self._read()
        else:
            given = {**(settings or {}), **aliases}
            self._source = lambda: given
            if settings is None and not aliases:
                given = _NONE_GIVEN
            self._settings = self._read()
        #: The connection pools, by alias.
        self.connections: AliasedPools[ConnectionPool] = AliasedPools(self, groups.connections)
        #: The producer pools, by alias.
        self.producers: AliasedPools[ProducerPool] = AliasedPools(self, groups.producers)
        _all.add(self)

    @property
    def settings(self) -> Mapping[str, PoolSettings]:
        """The settings, by alias.

        :raises SettingsError: with every problem.
        """
        settings = self._settings
        if settings is None:
            settings = self._settings = self._read()
        return settings

    def _given(self) -> Any:
        """Return what the settings are read from: a dict, a function or a path."""
        return self._source()

    def _parse(self) -> dict[str, PoolSettings]:
        value = self._given()
        return {} if value is _NONE_GIVEN else parse_settings(value, name=self.name)

    def task_counter(self, alias: str) -> TaskCounter:
        """Return what counts the tasks of Celery that are sent over *alias*; made at the first call."""
        counter = self.task_counters.get(alias)
        # One step of the interpreter: of two threads that come first, both get the same.
        return counter or self.task_counters.setdefault(alias, TaskCounter())

    def row_writer(self, using: str) -> Callable[[PreparedMessage], object] | None:
        """Return what makes a message a row of the current transaction; ``None`` if it is to be published.

        It is for messages whose calls say nothing of an outbox, such as Celery's tasks. Frameworks that know of
        transactions have one for an alias with ``OUTBOX``.
        """
        return None

    def _read(self) -> dict[str, PoolSettings]:
        return self.replaced(self._parse())

    @staticmethod
    def replaced(settings: dict[str, PoolSettings]) -> dict[str, PoolSettings]:
        """Return *settings*, or what a test has replaced them by."""
        return settings if _replacement is None else _replacement(settings)

    def settings_of(self, alias: str) -> PoolSettings:
        """Return the settings of *alias*.

        :raises UnknownAlias: if it is not configured. The text lists the known aliases, and the nearest.
        """
        try:
            return self.settings[alias]
        except KeyError:
            raise groups.unknown_alias(alias, self.settings) from None

    @property
    def can_change(self) -> bool:
        """Whether a :meth:`reload` may find other settings, because they come from a function or a file."""
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
        # By process, because a child that is forked meanwhile does not have the thread that reloads.
        turn, me = (os.getpid(), "reload"), object()
        if self._turns.setdefault(turn, me) is not me:
            # Not repr(self), because that would read the settings.
            raise RuntimeError(f"{self.name} is being reloaded by another thread")
        try:
            return self._reload(timeout, force, needed)
        finally:
            del self._turns[turn]

    def _reload(self, timeout: float, force: bool, needed: Collection[str]) -> Reloaded:
        new = self._read()
        change = Change(self._settings or {}, new)
        change.check(needed, self.name, force=force)
        kept = change.connect(timeout)
        if kept and not force:
            raise _kept(kept, new, " and its settings")
        change.suspend()
        self._settings = new
        if _configured is self:
            groups.name_aliases(new)
        self.connections.forget_names()
        self.producers.forget_names()
        if change.changed or change.gone:
            # A caller that has just looked up an old pool may still acquire from it.
            time.sleep(LOOKUP_GRACE)
        done = change.retire(self._is_named)
        if change.changed or change.gone or done.new:
            events.pools_reset.send(reason="settings")
        return replace(done, failures={alias: one.error for alias, one in kept.items()})

    def _is_named(self, group: groups.PoolGroup[Any], settings: PoolSettings) -> bool:
        """Return whether an alias of any :class:`Pools` names the pool of *group* with *settings*."""
        key = group.key(settings)
        every = [
            groups.named_settings(),
            *(pools._settings or {} for pools in snapshot(lambda: _all)),
        ]
        return any(group.key(one) == key for named in every for one in named.values())

    def forget_settings(self) -> None:
        """Read the settings anew at the next use, and drain the pools with the old ones.

        This is a :meth:`reload` for tests that change settings. It does not open new connections first.
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
        routing_key: str | Queue | None = None,
        *,
        exchange: str | Exchange | None = None,
        using: str = "default",
        acquire_timeout: float | None = _AS_CONFIGURED,
        **kwargs: Unpack[MessageKeywords],
    ) -> None:
        """Publish one message on a producer of the pool.

        With confirms it returns when the broker has the message. If the connection breaks, the publish is tried again
        on another connection, as ``RETRY`` says, with the same ``message_id``, so that a consumer can drop a
        duplicate. A message that no queue takes is an error if ``mandatory`` or ``MANDATORY`` says so; by default it
        is one on the default exchange.

        A publish takes at most ``acquire_timeout`` plus ``CONFIRM_TIMEOUT``. The keywords ``timeout`` (for all
        attempts), ``confirm_timeout`` (for each attempt) and ``retry_policy`` override this, and may make it longer.

        All arguments are checked before anything is opened or sent, by AMQP's rules on every transport.

        :param body: any object that the serializer accepts.
        :param routing_key: a text of at most 255 bytes; a :class:`kombu.Queue` stands for its name.
        :param exchange: a name or a :class:`kombu.Exchange`. By default the default exchange, where the routing key is
            the name of a queue.
        :param using: the alias.
        :param acquire_timeout: seconds to wait for a producer; ``None`` means without end.
        :param kwargs: those of :meth:`kombu.Producer.publish`, including AMQP's properties; ``declare`` may be a single
            entity.
        :raises TypeError: for an unknown keyword, with the nearest known one, and for a value of a wrong type.
        :raises ValueError: if there is neither a routing key nor an exchange, for a value out of range, and for
            headers that do not fit into a frame of the broker.
        :raises LimitExceeded: if no producer became free in time.
        :raises OperationalError: if the broker cannot be reached. Subclasses say what became of the message:
            :class:`~.PublishNacked`, :class:`~.PublishReturned`, :class:`~.PublishRefused`, and
            :class:`~.PublishUnknown`, with which it may be in the broker.
        """
        key, to, options = checked(routing_key, exchange, kwargs, body)
        self.publish_checked(body, key, to, options, using=using, acquire_timeout=acquire_timeout)

    def publish_checked(
        self,
        body: Any,
        routing_key: str,
        exchange: str | Exchange | None,
        options: dict[str, Any],
        *,
        using: str,
        acquire_timeout: float | None,
    ) -> None:
        """:meth:`publish`, with arguments that were checked by :func:`.arguments.checked`."""
        settings = self.settings_of(using)
        if acquire_timeout is _AS_CONFIGURED:
            acquire_timeout = settings.acquire_timeout
        message_id = options.get("message_id")
        if message_id is None:
            message_id = options["message_id"] = new_message_id()
        lender = self._lender(using)
        road: SharedRoad | None = None
        # What a framework has lent already is there: another lease might not be.
        if isinstance(lender, ProducerPool):
            shares = settings.publish_is_shared or (settings.is_shared and lender.is_crowded)
            road = _shared_road(lender) if shares else lender.shared_road
            if shares and road is not None:
                message = road.prepare(body, routing_key, exchange, options, acquire_timeout)
                if message is not None and road.publish(message):
                    return
        became = "was not sent; it is not in the broker"
        try:
            with lender.acquire(block=acquire_timeout is None, timeout=acquire_timeout) as producer:
                became = ""
                producer.publish(body, routing_key=routing_key, exchange=exchange, **options)
                became = "was published before that"
            if road is not None:
                road.note_declared(options.get("declare"))
        except BaseException as error:
            # The errors of the publish itself say what became of the message; others do not.
            if became and not (isinstance(error, Exception) and raised_by_library(error)):
                error.add_note(f"alias {using!r}: interrupted; message {message_id} {became}")
            raise

    def submit(
        self,
        body: Any,
        routing_key: str | Queue | None = None,
        *,
        exchange: str | Exchange | None = None,
        using: str = "default",
        acquire_timeout: float | None = _AS_CONFIGURED,
        **kwargs: Unpack[MessageKeywords],
    ) -> Future[None]:
        """Publish one message in the background, and return a future with its outcome.

        The arguments are checked and the body is serialized now, so the caller may change them afterwards. What one
        thread submits to one exchange arrives in the order of its calls. A future that is not begun can be cancelled. A
        failure that nobody asks for, by ``result()``, ``exception()`` or a callback, is logged once by
        ``kombu_pools_ext``, with alias, exchange, routing key and ``message_id``.

        Where no thread can be started, the message is published in this thread, and the future is finished.

        The arguments are those of :meth:`publish`.

        :param acquire_timeout: seconds to wait for a producer, and before that, while too many messages wait already,
            for room; ``None`` means without end.
        :returns: a future whose result is ``None``, and whose exception is what :meth:`publish` would have raised.
        :raises TypeError, ValueError: for invalid arguments, as in :meth:`publish`.
        :raises EncodeError: if *body* cannot be serialized.
        :raises PoolFull: if there was no room in time.
        :raises UnknownAlias: if no pool is configured under *using*.
        """
        if acquire_timeout is not _AS_CONFIGURED:
            kwargs = {**kwargs, "acquire_timeout": acquire_timeout}  # type: ignore[typeddict-unknown-key]
        caller = threading.get_ident()
        submission = self._start(caller, None, body, routing_key, exchange, using, kwargs)
        return cast("Future[None]", submission.future)

    async def apublish(
        self,
        body: Any,
        routing_key: str | Queue | None = None,
        *,
        exchange: str | Exchange | None = None,
        using: str = "default",
        acquire_timeout: float | None = _AS_CONFIGURED,
        **kwargs: Unpack[MessageKeywords],
    ) -> None:
        """Publish one message, as :meth:`publish`, without blocking the event loop; in any loop of asyncio.

        A cancellation leaves nothing behind: a message that was not begun is not sent, and one that was begun is
        published in the background. A note on the ``CancelledError`` says which, with the ``message_id``.

        Arguments and errors are those of :meth:`publish`.

        :param acquire_timeout: seconds, from now on, to wait for a producer; ``None`` means without end.
        :raises EncodeError: if *body* cannot be serialized.
        :raises RuntimeError: outside of a running event loop of asyncio.
        """
        import_whole(*_SUBMITTING)
        from .submitting.awaiting import awaited_future, current_task_number, outcome_in_loop

        if acquire_timeout is not _AS_CONFIGURED:
            kwargs = {**kwargs, "acquire_timeout": acquire_timeout}  # type: ignore[typeddict-unknown-key]
        # A task waits for each of its messages, so tasks need no order among each other. Nothing is kept here, because
        # this frame is on the traceback of the message's error.
        task, future = current_task_number(), awaited_future()
        await outcome_in_loop(
            self._start(task, future, body, routing_key, exchange, using, kwargs), future
        )

    def _start(
        self,
        caller: int,
        awaited: AwaitedFuture | None,
        body: Any,
        routing_key: Any,
        exchange: Any,
        using: str,
        kwargs: Any,
    ) -> Submission:
        import_whole(*_SUBMITTING)
        from .submitting.draft import Draft
        from .submitting.submission import Submission

        road = self.road_of(using)
        key, to, options = checked(routing_key, exchange, kwargs, body)
        timeout = options.pop("acquire_timeout", _AS_CONFIGURED)
        if timeout is _AS_CONFIGURED:
            timeout = self.settings_of(using).acquire_timeout
        draft = Draft(self, using, body, key, to, options, awaited=awaited is not None)
        lane = caller, draft.destination.exchange
        submission = Submission(self, draft, road, lane, timeout, awaited)
        road.start(submission)
        return submission

    def road_of(self, using: str) -> Road:
        """Return what takes the messages that are published to *using* without waiting."""
        # Both, because a reload may change it. What is under way on the former one goes on there.
        way = using, self.settings_of(using).is_shared
        road = self._roads.get(way)
        if road is None:
            import_whole(*_SUBMITTING)
            from .submitting.leased_road import LeasedRoad

            made: Road = LeasedRoad(using, lambda: self.connections[using].limit)
            if way[1]:
                from .submitting.shared_submissions import SharedSubmissions

                made = SharedSubmissions(using, lambda: _shared_road(self.producers[using]), made)
            road = self._roads.setdefault(way, made)
        return road

    def publish_prepared(self, message: PreparedMessage, acquire_timeout: float | None) -> None:
        """Publish *message*, as :meth:`publish`."""
        self.publish(
            message.body,
            using=message.using,
            acquire_timeout=acquire_timeout,
            **message.arguments,
        )

    def _lender(self, using: str) -> Any:
        """Return what :meth:`publish` acquires a producer from. A framework may have one lent already."""
        return self.producers[using]

    def aliases_of(self, pool: Any) -> tuple[str, ...]:
        """Return the aliases that name the connection pool *pool*, even if a reset took it out of its group."""
        former = groups.connections._former
        return tuple(
            alias
            for alias, settings in self.settings.items()
            if former.get(self.connections.key_of(alias, settings)) is pool
        )

    def pools_of(self, using: Sequence[str] | None = None) -> dict[str, ConnectionPool]:
        """Return the connection pools of these aliases, or of all.

        :raises UnknownAlias: for an alias that is not configured.
        :raises TypeError: if *using* is a single alias, or a number that was meant as a time-out.
        """
        if isinstance(using, str | int | float):
            one = isinstance(using, str)
            hint = (
                suggestion(f"[{using!r}]") if one else "a time-out is drain()'s and wait_ready()'s"
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
        """Lend and open nothing for these aliases, or for all, until :meth:`resume`.

        Leases that exist go on, and end as usual. The connections and the producers of a broker are suspended
        together, and so are aliases that share a pool.

        :param mode: with ``"wait"``, callers wait for :meth:`resume` until their time-out; with ``"fail"`` they get
            :class:`~.PoolSuspended` at once. This includes callers that wait already. A caller that does not wait gets
            it at once in both modes.
        :raises ValueError: for another mode.
        :raises UnknownAlias: for an alias that is not configured; no pool is suspended then.
        """
        for pool in self.pools_of(using).values():
            pool.suspend(mode)

    def resume(self, using: Sequence[str] | None = None) -> None:
        """End :meth:`suspend` for these aliases, or for all. Callers that waited meanwhile are served first.

        :raises UnknownAlias: for an alias that is not configured; no pool is resumed then.
        """
        for pool in self.pools_of(using).values():
            pool.resume()

    def wait_ready(self, timeout: float, using: Sequence[str] | None = None) -> None:
        """Wait until each of these aliases, or of all, has ``MIN_IDLE`` connections open, and at least one.

        It goes on waiting while the broker is down, however long that lasts, and while the broker refuses the login,
        because the user may be added meanwhile.

        :param timeout: seconds for all of them together.
        :raises ConnectTimeout: if a pool has fewer by then; ``__cause__`` is the error of its last attempt.
        :raises PoolSuspended: if a pool is suspended, and not resumed by then.
        :raises UnknownAlias: for an alias that is not configured.
        :raises TypeError, ValueError: if *timeout* is not a valid number of seconds.
        """
        deadline = time.monotonic() + valid_seconds(timeout)
        for pool in self.pools_of(using).values():
            pool.wait_ready(max(0.0, deadline - time.monotonic()))

    def drain(
        self, timeout: float | None = None, using: Sequence[str] | None = None
    ) -> dict[str, Drained]:
        """Close all connections of these aliases, or of all: idle ones now, lent ones when they come back.

        Unlike :meth:`reset` it waits for the lent ones, and opens no new connection first. Before that, it waits for
        the outcomes of submitted messages. The pools stay usable: callers get new connections meanwhile, unless the
        pools are suspended.

        :param timeout: seconds to wait for all of this together; ``None`` means not to wait.
        :returns: by alias, how many connections were closed and how many are still lent. Aliases that share a pool
            have the same numbers.
        :raises UnknownAlias: for an alias that is not configured; nothing is closed then.
        :raises TypeError, ValueError: if *timeout* is not a valid number of seconds.
        """
        deadline = None if timeout is None else time.monotonic() + valid_seconds(timeout)
        pools = self.pools_of(using)
        if deadline is not None:
            for (alias, _), road in list(self._roads.items()):
                if alias in pools:
                    road.await_empty(deadline)
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
    """Configure the aliases of this process, in plain Python. The shared groups understand them from now on.

    ::

        configure(default={"url": "amqp://guest:guest@localhost//", "limit": 20})
        with producers["default"].acquire(timeout=5) as producer: ...

    :returns: the aliases.
    :raises SettingsError: with every problem. The former settings stay in force then.
    """
    global _configured
    pools = Pools(settings, **aliases)
    groups.name_aliases(pools.settings)
    _configured = pools
    return pools


def replace_settings(
    replacement: Callable[[dict[str, PoolSettings]], dict[str, PoolSettings]] | None,
) -> None:
    """Have *replacement* replace the settings of all :class:`Pools`, of those too that are made later; for tests.

    The pools of the former settings are closed.

    :param replacement: gets the settings by alias, and returns others; ``None`` ends that.
    """
    global _replacement
    _replacement = replacement
    for pools in snapshot(lambda: _all):
        pools.forget_settings()
    if _configured is not None:
        groups.name_aliases(_configured.settings)


def configured_pools() -> Pools:
    """Return the pools of the last :func:`configure`.

    :raises UnknownAlias: if there was none.
    """
    if _configured is None:
        raise UnknownAlias(
            "no broker pools are configured; call kombu_pools_ext.configure(default={'url': 'amqp://…'}) first"
        )
    return _configured
