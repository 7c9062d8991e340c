"""The settings of a pool: one vocabulary for Django, Flask and plain Python.

``docs/reference/settings.md`` has a table of them, with the reasons for the defaults.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import kombu
from kombu.utils.url import parse_url

from ..engine.options import PoolOptions
from ..masking import describe, mask_url, show
from . import sources
from . import urls as broker_urls
from .likeness import stand_in
from .nested import Identity, copy_options, freeze
from .parser import (
    CHECKS,
    DEFAULT_EXCHANGE,
    RetryPolicy,
    UseGlobalLimit,
    check_values,
    has_confirms,
    read_keys,
    use_global_limit,
)
from .problems import Problem, SettingsError, forgets_arguments, text_hint

__all__ = [
    "PoolSettings",
    "Problem",
    "RetryPolicy",
    "SettingsError",
    "UseGlobalLimit",
    "parse_settings",
    "use_global_limit",
]

_EXAMPLE = '{"default": {"URL": "amqp://localhost//"}}'


@dataclass(frozen=True, kw_only=True, repr=False)
class PoolSettings:
    """All that makes one pool, checked; all durations are seconds.

    :raises SettingsError: with everything that is wrong.
    """

    #: One or more broker URLs, tried in their order; a single text, or several in it after ``;``, will do.
    #: :meth:`of` and ``KOMBU_POOLS`` make it of ``host``, ``port``, ``user``, ``password``, ``vhost`` and
    #: ``transport`` as well.
    url: tuple[str, ...]
    #: What is asked for the password, or for user and password, at each connect; a function or its dotted path.
    credentials: str | Callable[[], Any] | None = None
    #: Most connections of this process; ``None`` (or 0) is unlimited.
    limit: int | UseGlobalLimit | None = use_global_limit
    #: Connections kept open in the background.
    min_idle: int = 0
    #: The longest that the frameworks' helpers wait for a lease; ``None`` is without end, 0 not at all.
    acquire_timeout: float | None = 5.0
    #: Callers that may wait at once; ``None`` is ten times the limit.
    max_waiting: int | None = None
    #: For one attempt to connect.
    connect_timeout: float = 5.0
    #: A broker that has been away for longer is not waited for: callers fail at once, until it is back.
    outage_patience: float = 10.0
    #: A connection is closed after so long without use; ``None`` is never.
    idle_timeout: float | None = 300.0
    #: A connection is closed at this age, when it is next idle; ``None`` is never.
    max_lifetime: float | None = 1800.0
    #: A connection unused for longer is checked before it is lent.
    check_after: float = 0.5
    #: AMQP's heartbeat; 0 is off. 60 s is what RabbitMQ itself proposes.
    heartbeat: float = 60.0
    #: With AMQP, a publish returns when the broker has the message.
    confirm: bool = True
    #: The longest that a publish takes, with all its tries; with Redis, each of its answers besides.
    confirm_timeout: float = 10.0
    #: For a publish whose connection broke; ``None`` is not to try again.
    retry: RetryPolicy | None = field(default_factory=RetryPolicy)
    #: Whether a message that no queue takes is an error; ``"default_exchange"`` is for those that name a queue alone.
    mandatory: bool | str = DEFAULT_EXCHANGE
    #: A lease held for longer is reported, with its borrower's stack; ``None`` is off.
    leak_after: float | None = None
    #: Whether to use TLS, or the transport's options for it.
    ssl: bool | Mapping[str, Any] = False
    #: The name of the serializer for what is published; ``None`` is kombu's default, JSON.
    serializer: str | None = None
    #: The name of the compression for what is published; ``None`` is none.
    compression: str | None = None
    #: Passed to the transport; what stands here wins over what follows from other settings.
    transport_options: Mapping[str, Any] = field(default_factory=dict)
    #: What the broker's own tools show for the connections.
    connection_name: str | None = None

    _identity: Identity = field(init=False, compare=False)

    def __post_init__(self) -> None:
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        values, problems = check_values(given, {name: name for name in CHECKS})
        if problems:
            raise SettingsError(problems)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_identity", self._identify())

    @classmethod
    @forgets_arguments
    def of(cls, **keywords: Any) -> PoolSettings:
        """Settings from keywords in lower case, such as ``url="amqp://localhost//", limit=20``.

        :raises SettingsError: with everything that is wrong, misspelt keywords included.
        """
        return _read(keywords, None)

    def connection(self) -> kombu.Connection:
        """A new connection with these settings, not connected; nothing in it is shared with another."""
        urls = list(self.url)
        if len(urls) > 1:
            urls = [broker_urls.with_defaults(url, bool(self.ssl)) for url in urls]
        if not self.ssl:
            urls = [broker_urls.verified(url) for url in urls]
        return kombu.Connection(
            urls if len(urls) > 1 else urls[0],
            ssl=self._tls(),
            heartbeat=self.heartbeat if self.is_amqp else 0,
            connect_timeout=self.connect_timeout,
            transport_options=self._options_for_transport(),
        )

    def _tls(self) -> bool | dict[str, Any]:
        if self.ssl is True and self._implementation == "redis":
            # kombu's Redis transport takes a dict alone, and would go on without TLS.
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
        elif self._implementation == "redis":
            # kombu's Redis transport ignores the connection's own time-out.
            options.setdefault("socket_connect_timeout", self.connect_timeout)
            if self.connection_name:
                # Older kombus ignore it.
                options.setdefault("client_name", self.connection_name)
        return options

    @property
    def asks_for_credentials(self) -> bool:
        """Whether :attr:`credentials` are asked: where another transport is put in, for tests say, nobody is."""
        return self.credentials is not None and self._implementation in ("pyamqp", "redis")

    @property
    def names_user(self) -> bool:
        """Whether each URL names the user; of a transport that kombu reads the URLs of."""
        return all(parse_url(url)["userid"] for url in self.url)

    @property
    def options(self) -> PoolOptions:
        """The engine's part of the settings."""
        return PoolOptions(
            min_idle=self.min_idle,
            max_waiting=self.max_waiting,
            connect_timeout=self.connect_timeout,
            outage_patience=self.outage_patience,
            idle_timeout=self.idle_timeout,
            max_lifetime=self.max_lifetime,
            check_after=self.check_after,
            leak_after=self.leak_after,
        )

    @property
    def uses_global_limit(self) -> bool:
        """Whether :func:`kombu_pools_ext.pools.set_limit` governs the pool."""
        return self.limit is use_global_limit

    def own_limit(self, global_limit: int | None) -> int | None:
        """The pool's limit, where the global one is *global_limit*; ``None`` is unlimited."""
        return global_limit if isinstance(self.limit, UseGlobalLimit) else self.limit

    @property
    def uri(self) -> str:
        """The URLs for people to read: joined by ``;``, with ``**`` for each password."""
        return ";".join(map(mask_url, self.url))

    @property
    def transport(self) -> str:
        """The name of the first URL's transport, such as ``amqp``."""
        return broker_urls.transport_of(self.url[0])

    @property
    def is_amqp(self) -> bool:
        """Whether the transport is kombu's for AMQP, which has confirms and heartbeats."""
        return self._implementation == "pyamqp"

    @property
    def has_confirms(self) -> bool:
        """Whether a publish waits for the broker's word: with AMQP, unless it was told not to."""
        return self.is_amqp and has_confirms(self.confirm, self.transport_options)

    @property
    def _implementation(self) -> str:
        return broker_urls.implementation_of(self.transport)

    @property
    def required_module(self) -> str | None:
        """The module that the transport needs besides kombu, such as ``redis``; ``None`` if none."""
        return broker_urls.driver_of(self.transport)

    def missing_driver(self) -> str | None:
        """What to install, if the module that the transport needs is missing; imports nothing."""
        return broker_urls.missing_driver(self.transport)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for settings that can share a pool, hashable, and computed once.

        What belongs to the caller is not in it: the alias, ``acquire_timeout``, ``retry``, ``mandatory``,
        ``serializer`` and ``compression``; nor what has no effect on the transport.
        """
        return self._identity

    def _identify(self) -> Identity:
        # On Redis the one bounds every answer; elsewhere none of them has an effect.
        own: tuple[object, ...] = ()
        if self.is_amqp:
            own = self.heartbeat, self.confirm, self.confirm_timeout
        elif self._implementation == "redis":
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
                stand_in(self.credentials),
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


# The one that dataclass has made.
PoolSettings.__init__ = forgets_arguments(PoolSettings.__init__)  # type: ignore[method-assign]


@forgets_arguments
def parse_settings(
    value: object, *, name: str = "KOMBU_POOLS", beside: Iterable[Problem] = ()
) -> dict[str, PoolSettings]:
    """The pools' settings by alias; connects to nothing, and imports no transport.

    :param value: a dict of aliases, or where :func:`.sources.read` finds one: a function, a dotted path to one, or a
        file of JSON or TOML. Each alias has a dict of settings, with their names in upper or in lower case; a URL
        alone stands for ``{"URL": …}``, and :class:`PoolSettings` for themselves.
    :param name: what *value* is called where it was written, for the error's text.
    :param beside: problems of other settings, to be raised together.
    :raises SettingsError: with everything that is wrong, in all aliases.
    :raises Exception: what a function raises.
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
        # What is no name may be a URL by mistake, with a password in it.
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
    """Whether *key*, which stands where an alias belongs, is a setting and its value *given* no pool's."""
    if not isinstance(key, str) or key.lower() not in CHECKS or isinstance(given, PoolSettings):
        return False
    if isinstance(given, str) and "://" in given:
        # A pool may be called "retry", and have no more than a URL.
        return key.lower() == "url"
    pool = isinstance(given, Mapping) and any(str(name).lower() in CHECKS for name in given)
    return not pool


def _read(given: Mapping[Any, Any], alias: str | None, upper: bool = False) -> PoolSettings:
    keyed, spelling, problems = read_keys(given, upper, alias)
    values, wrong = check_values(keyed, spelling, alias)
    if problems or wrong:
        raise SettingsError([*problems, *wrong])
    return PoolSettings(**values)
