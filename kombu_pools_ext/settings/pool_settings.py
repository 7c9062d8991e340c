"""The settings of one pool, and :func:`parse_settings`, which reads those of all aliases."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from kombu.connection import Connection
from kombu.utils.url import parse_url

from ..engine.options import PoolOptions
from ..masking import describe, mask_url, show
from . import sources
from . import urls as broker_urls
from .credentials_key import credentials_key
from .nested import Identity, copy_options, freeze
from .parser import (
    AUTO,
    CHECKS,
    DEFAULT_EXCHANGE,
    LEASED,
    SHARED,
    RetryPolicy,
    UseGlobalLimit,
    check_values,
    has_confirms,
    read_keys,
    use_global_limit,
)
from .problems import Problem, SettingsError, forgets_arguments, text_hint

__all__ = [
    "CONFIRM_TIMEOUT",
    "PoolSettings",
    "Problem",
    "RetryPolicy",
    "SettingsError",
    "UseGlobalLimit",
    "parse_settings",
    "use_global_limit",
]

#: Seconds for a publish with its confirm, and for an answer of Redis: of an alias by default, and of pools that have no
#: settings.
CONFIRM_TIMEOUT = 10.0
#: How many callers may wait for each connection of the limit if ``max_waiting`` is ``None``. The last of them is served
#: within ``acquire_timeout`` as long as a lease takes less than 50 ms; ``docs/howto/size-a-pool.md`` measures it.
WAITING_PER_CONNECTION = 100

_EXAMPLE = '{"default": {"URL": "amqp://localhost//"}}'


@dataclass(frozen=True, kw_only=True, repr=False)
class PoolSettings:
    """The checked settings of one pool. All durations are in seconds.

    :raises SettingsError: with everything that is wrong.
    """

    #: One or more broker URLs, tried in this order. May be given as one text, with ``;`` between several URLs.
    #: :meth:`of` and ``KOMBU_POOLS`` also make it of ``host``, ``port``, ``user``, ``password``, ``vhost`` and
    #: ``transport``.
    url: tuple[str, ...]
    #: A function, or its dotted path, that returns the password, or user and password, at each connect.
    credentials: str | Callable[[], Any] | None = None
    #: The most connections that this process opens; ``None`` (or 0) means no limit.
    limit: int | UseGlobalLimit | None = use_global_limit
    #: How many connections are kept open while unused.
    min_idle: int = 0
    #: How long the frameworks' helpers wait for a lease; ``None`` means without end, 0 not at all.
    acquire_timeout: float | None = 5.0
    #: How many callers may wait at once; ``None`` means :data:`WAITING_PER_CONNECTION` times the limit.
    max_waiting: int | None = None
    #: The longest that one attempt to connect may take.
    connect_timeout: float = 5.0
    #: Once the broker has been unreachable for this long, callers fail at once until it is back.
    outage_patience: float = 10.0
    #: A connection is closed after this long without use; ``None`` means never.
    idle_timeout: float | None = 300.0
    #: A connection of this age is closed when it is next idle; ``None`` means never.
    max_lifetime: float | None = 1800.0
    #: A connection that was unused for longer is checked before it is lent.
    check_after: float = 0.5
    #: AMQP's heartbeat; 0 turns it off. RabbitMQ itself proposes 60 s.
    heartbeat: float = 60.0
    #: Whether a publish on AMQP returns only when the broker has the message.
    confirm: bool = True
    #: The longest that a publish may take, with all attempts, unless the call has a time-out of its own. With Redis,
    #: also the longest wait for each answer.
    confirm_timeout: float = CONFIRM_TIMEOUT
    #: When a publish is tried again after its connection broke; ``None`` means never.
    retry: RetryPolicy | None = field(default_factory=RetryPolicy)
    #: Whether a message that no queue takes is an error; ``"default_exchange"`` means only those whose routing key
    #: names a queue.
    mandatory: bool | str = DEFAULT_EXCHANGE
    #: What messages go over on AMQP with confirms: ``"shared"`` is one connection for all threads, ``"leased"`` a lease
    #: for each message; ``"auto"`` is a lease for ``publish`` as long as one is free, and the shared connection else,
    #: and for ``submit`` and ``apublish``, which no thread waits for. Elsewhere it is always a lease.
    publish_over: str = AUTO
    #: How many messages may be without an outcome at once on the shared connection; further callers wait.
    in_flight: int = 1000
    #: Whether messages that wait for a commit become rows of the outbox, which a relay publishes.
    outbox: bool = False
    #: A lease held for longer is reported, with its borrower's stack; ``None`` turns this off.
    leak_after: float | None = None
    #: Whether to use TLS, or the transport's TLS options.
    ssl: bool | Mapping[str, Any] = False
    #: The name of the serializer for published messages; ``None`` means kombu's default, JSON.
    serializer: str | None = None
    #: The name of the compression for published messages; ``None`` means no compression.
    compression: str | None = None
    #: Options for the transport. They override what follows from other settings.
    transport_options: Mapping[str, Any] = field(default_factory=dict)
    #: The name of the connections in the broker's own tools.
    connection_name: str | None = None

    _identity: Identity = field(init=False, compare=False)
    #: Whether ``submit`` and ``apublish`` go over one connection, and whether every ``publish`` does, too; if nothing
    #: speaks against it once that is open.
    is_shared: bool = field(init=False, compare=False)
    publish_is_shared: bool = field(init=False, compare=False)

    def __post_init__(self) -> None:
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        values, problems = check_values(given, {name: name for name in CHECKS})
        if problems:
            raise SettingsError(problems)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_identity", self._identify())
        # Asked at each publish.
        shared = self.publish_over != LEASED and self.is_amqp and self.has_confirms
        object.__setattr__(self, "is_shared", shared)
        object.__setattr__(self, "publish_is_shared", shared and self.publish_over == SHARED)

    @classmethod
    @forgets_arguments
    def of(cls, **keywords: Any) -> PoolSettings:
        """Make settings from keywords in lower case, such as ``url="amqp://localhost//", limit=20``.

        :raises SettingsError: with everything that is wrong, misspelt keywords included.
        """
        return _read(keywords, None)

    def connection(self) -> Connection:
        """Return a new connection with these settings, not yet connected. It shares no object with another one."""
        urls = list(self.url)
        if len(urls) > 1:
            urls = [broker_urls.with_defaults(url, bool(self.ssl)) for url in urls]
        if not self.ssl:
            urls = [broker_urls.verified(url) for url in urls]
        return Connection(
            urls if len(urls) > 1 else urls[0],
            ssl=self._tls(),
            heartbeat=self.heartbeat if self.is_amqp else 0,
            connect_timeout=self.connect_timeout,
            transport_options=self._options_for_transport(),
        )

    def _tls(self) -> bool | dict[str, Any]:
        if self.ssl is True and self.is_redis:
            # kombu's Redis transport accepts only a dict, and would connect without TLS.
            return {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        tls: bool | dict[str, Any] = copy_options(self.ssl)
        return tls

    def _options_for_transport(self) -> dict[str, Any]:
        options: dict[str, Any] = copy_options(self.transport_options)
        if self.is_amqp:
            if self.confirm:
                options.setdefault("confirm_publish", True)
            if self.connection_name:
                properties = options.setdefault("client_properties", {})
                if isinstance(properties, dict):
                    properties.setdefault("connection_name", self.connection_name)
        elif self.is_redis:
            # kombu's Redis transport ignores the connection's own connect_timeout.
            options.setdefault("socket_connect_timeout", self.connect_timeout)
            if self.connection_name:
                # Older versions of kombu ignore it.
                options.setdefault("client_name", self.connection_name)
        return options

    @property
    def asks_for_credentials(self) -> bool:
        """Whether :attr:`credentials` is called at each connect; only AMQP and Redis do that."""
        return self.credentials is not None and (self.is_amqp or self.is_redis)

    @property
    def names_user(self) -> bool:
        """Whether each URL names the user. For transports whose URLs kombu parses."""
        return all(parse_url(url)["userid"] for url in self.url)

    @property
    def options(self) -> PoolOptions:
        """The settings that the engine uses."""
        return PoolOptions(
            min_idle=self.min_idle,
            max_waiting=self.max_waiting,
            waiting_per_item=WAITING_PER_CONNECTION,
            from_settings=True,
            connect_timeout=self.connect_timeout,
            outage_patience=self.outage_patience,
            idle_timeout=self.idle_timeout,
            max_lifetime=self.max_lifetime,
            check_after=self.check_after,
            leak_after=self.leak_after,
        )

    @property
    def uses_global_limit(self) -> bool:
        """Whether the pool follows the limit that :func:`kombu_pools_ext.pools.set_limit` sets."""
        return self.limit is use_global_limit

    def own_limit(self, global_limit: int | None) -> int | None:
        """Return the pool's limit if the global one is *global_limit*; ``None`` means no limit."""
        return global_limit if isinstance(self.limit, UseGlobalLimit) else self.limit

    @property
    def uri(self) -> str:
        """The URLs joined by ``;``, with ``**`` in place of each password."""
        return ";".join(map(mask_url, self.url))

    @property
    def transport(self) -> str:
        """The transport of the first URL, such as ``amqp``."""
        return broker_urls.transport_of(self.url[0])

    @property
    def is_amqp(self) -> bool:
        """Whether the transport is kombu's AMQP transport, which has confirms and heartbeats."""
        return self._implementation == "pyamqp"

    @property
    def is_redis(self) -> bool:
        """Whether the transport is kombu's Redis transport, with or without Sentinel."""
        return self._implementation == "redis"

    @property
    def has_confirms(self) -> bool:
        """Whether a publish waits for the broker's confirm: on AMQP, unless confirms are turned off."""
        return self.is_amqp and has_confirms(self.confirm, self.transport_options)

    @property
    def _implementation(self) -> str:
        return broker_urls.implementation_of(self.transport)

    @property
    def required_module(self) -> str | None:
        """The module that the transport needs besides kombu, such as ``redis``; ``None`` if it needs no other."""
        return broker_urls.driver_of(self.transport)

    def missing_driver(self) -> str | None:
        """Return what to install if the module that the transport needs is missing; else ``None``. Imports nothing."""
        return broker_urls.missing_driver(self.transport)

    @property
    def identity(self) -> tuple[object, ...]:
        """A hashable key that is equal for settings that can share a pool. Computed once.

        It does not contain settings that do not concern the connections (``acquire_timeout``, ``retry``,
        ``mandatory``, ``serializer``, ``compression``, ``publish_over``, ``in_flight`` and ``outbox``), nor those that
        have no effect on the transport.
        """
        return self._identity

    def _identify(self) -> Identity:
        # On Redis, confirm_timeout bounds each answer; other transports use none of these three.
        own: tuple[object, ...] = ()
        if self.is_amqp:
            own = self.heartbeat, self.confirm, self.confirm_timeout
        elif self.is_redis:
            own = (self.confirm_timeout,)
        return Identity(
            (
                self.url,
                self.limit,
                self.min_idle,
                self.max_waiting,
                self.connect_timeout,
                self.outage_patience,
                self.idle_timeout,
                self.max_lifetime,
                self.check_after,
                *own,
                self.leak_after,
                credentials_key(self.credentials),
                freeze(self.ssl),
                freeze(self.transport_options),
                self.connection_name,
            )
        )

    def __hash__(self) -> int:
        return hash(self.url)

    def __repr__(self) -> str:
        parts = [repr(self.uri)]
        for one in fields(self):
            default = one.default_factory() if one.default_factory is not MISSING else one.default
            value = getattr(self, one.name)
            if one.init and one.name != "url" and value != default:
                parts.append(
                    f"{one.name}={value!r}" if one.name == "retry" else f"{one.name}={show(value)}"
                )
        return f"PoolSettings({', '.join(parts)})"


# The __init__ that dataclass has made receives the password as well.
PoolSettings.__init__ = forgets_arguments(PoolSettings.__init__)  # type: ignore[method-assign]


@forgets_arguments
def parse_settings(
    value: object, *, name: str = "KOMBU_POOLS", beside: Iterable[Problem] = ()
) -> dict[str, PoolSettings]:
    """Return the settings of each alias. Connects to nothing, and imports no transport.

    :param value: a dict of aliases, or what :func:`.sources.read` reads one from: a function, a dotted path to one, or
        a JSON or TOML file. The value of an alias is a dict of settings, with their names in upper or lower case, a
        URL, or a :class:`PoolSettings`.
    :param name: the name of the setting, for the error's text.
    :param beside: problems of other settings, to be raised together with these.
    :raises SettingsError: with everything that is wrong, in all aliases.
    :raises Exception: whatever the function raises.
    """
    problems = list(beside)
    try:
        value = sources.read(value)
    except SettingsError as error:
        raise SettingsError([*problems, *error.problems], name) from None
    pools: dict[str, PoolSettings] = {}
    if not isinstance(value, Mapping):
        expected = f"a dict of aliases, such as {_EXAMPLE}"
        is_url = isinstance(value, str) and "://" in value and not value.startswith("{")
        hint = 'write {"default": …}' if is_url else text_hint(value, expected)
        problems.append(Problem(None, None, f"expected {expected}, got {describe(value)}", hint))
        raise SettingsError(problems, name)
    if not value:
        problems.append(Problem(None, None, "the dict of aliases is empty", f"write {_EXAMPLE}"))
    misplaced = [key for key, given in value.items() if _lacks_its_alias(key, given)]
    if misplaced:
        shown = f"{', '.join(map(repr, misplaced))} {'is a setting' if len(misplaced) == 1 else 'are settings'}"
        message = f"{shown} of a pool, and not the name of one"
        hint = f'write {{"default": {{{misplaced[0]!r}: …}}}}'
        problems.append(Problem(None, None, message, hint))
    for alias, given in value.items():
        if alias in misplaced:
            continue
        is_name = isinstance(alias, str) and alias and not ("://" in alias or "@" in alias)
        # If it is not a name, it may be a URL by mistake, with a password in it.
        shown = alias if is_name else describe(alias).strip("'\"")
        if not is_name:
            expected = "the name of a pool, a text that is not empty and without '://' or '@'"
            message = f"expected {expected}, got {describe(alias)}"
            problems.append(Problem(shown, None, message))
        if isinstance(given, PoolSettings):
            pools[alias] = given
            continue
        if isinstance(given, str):
            given = {"URL": given}
        if not isinstance(given, Mapping):
            message = f"expected a URL or a dict of settings, got {describe(given)}"
            problems.append(Problem(shown, None, message))
            continue
        try:
            pools[alias] = _read(given, shown, upper=True)
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(problems, name)
    return pools


def _lacks_its_alias(key: object, given: object) -> bool:
    """Return whether *key* is the name of a setting where an alias belongs, and *given* is not a pool's settings."""
    if not isinstance(key, str) or key.lower() not in CHECKS or isinstance(given, PoolSettings):
        return False
    if isinstance(given, str) and "://" in given:
        # A pool may be called "retry", and have nothing but a URL.
        return key.lower() == "url"
    pool = isinstance(given, Mapping) and any(str(name).lower() in CHECKS for name in given)
    return not pool


def _read(given: Mapping[Any, Any], alias: str | None, upper: bool = False) -> PoolSettings:
    keyed, spelling, problems = read_keys(given, upper, alias)
    values, wrong = check_values(keyed, spelling, alias)
    if problems or wrong:
        raise SettingsError([*problems, *wrong])
    return PoolSettings(**values)
