"""System checks for ``KOMBU_POOLS``, and for the settings of control and of Celery. They connect to nothing.

``docs/reference/checks.md`` has an entry for each.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.utils.module_loading import import_string
from kombu.utils.url import parse_url

from kombu_pools_ext import PoolSettings, get_limit
from kombu_pools_ext.broker.credentials import Credentials
from kombu_pools_ext.documentation import Page
from kombu_pools_ext.errors import Problem, SettingsError

from . import conf, servers
from .decorators import decorated_in, used_aliases
from .health_settings import read_health
from .outbox.installed import NAME as OUTBOX

__all__ = [
    "TAG",
    "check_aliases",
    "check_celery",
    "check_celerys_broker",
    "check_control",
    "check_credentials",
    "check_credentials_path",
    "check_drivers",
    "check_encryption",
    "check_error_pages",
    "check_health",
    "check_limits",
    "check_memory",
    "check_outbox",
    "check_presence",
    "check_settings",
]

#: The tag for ``manage.py check --tag``.
TAG = "kombu_pools"

#: The longest message in characters. A longer one goes into the hint.
LONGEST = 79

#: Transports that do not encrypt messages, unless ``SSL`` is set.
_PLAIN = frozenset({"amqp", "pyamqp", "redis", "sentinel", "librabbitmq"})


def _valid() -> Mapping[str, PoolSettings]:
    """Return the settings by alias; none if they are wrong, because :func:`check_settings` reports that."""
    try:
        return conf.pools.settings
    except SettingsError:
        return {}


def _parts(settings: PoolSettings) -> Iterator[Mapping[str, Any]]:
    for url in settings.url:
        yield from _parts_of(url)


def _parts_of(url: str) -> Iterator[Mapping[str, Any]]:
    # Some transports have URLs that only they can parse.
    with contextlib.suppress(ValueError):
        yield parse_url(url)


@register(TAG)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """E001: a setting is wrong; one for each problem."""
    if conf.is_missing():
        return []
    try:
        conf.read_settings()
    except SettingsError as error:
        return [_wrong(problem) for problem in error.problems]
    return []


def _wrong(
    problem: Problem, name: str = conf.NAME, id: str = "kombu_pools.E001", page: Page | None = None
) -> Error:
    where = name
    for part in (problem.alias, problem.key):
        if part is not None:
            where += f"[{part!r}]"
    message, hint = f"{where}: {problem.message}", problem.hint
    if len(message) > LONGEST:
        hint = f"{problem.message}; {hint}" if hint else problem.message
        message = f"{where} is wrong."
    if len(message) > LONGEST:
        hint = f"{where}: {hint}"
        message = f"A setting in {name} is wrong."
    page = page or (Page.SETTINGS if name == conf.NAME else Page.CONTROL)
    return Error(message, hint=hint or f"See {page}.", id=id)


@register(TAG)
def check_health(**kwargs: Any) -> list[CheckMessage]:
    """E013: ``KOMBU_POOLS_HEALTH`` is wrong; one for each problem."""
    try:
        read_health()
    except SettingsError as error:
        return [
            _wrong(problem, conf.HEALTH, "kombu_pools.E013", Page.HEALTH)
            for problem in error.problems
        ]
    return []


@register(TAG)
def check_presence(**kwargs: Any) -> list[CheckMessage]:
    """E002: there is not a setting, and DEBUG is off."""
    if not conf.is_missing():
        return []
    return [
        Error(
            f"The setting {conf.NAME} is missing, and DEBUG is off.",
            hint=f'{conf.NAME} = {{"default": {{"URL": "amqp://user:password@host:5672//"}}}}',
            id="kombu_pools.E002",
        )
    ]


@register(TAG)
def check_aliases(**kwargs: Any) -> list[CheckMessage]:
    """E003: a view is decorated with an alias that is not configured."""
    known = _valid()
    if not known:
        return []
    # First, because this imports the views, and a decorator registers its alias at the import.
    of_classes = _decorated_views()
    return [
        Error(
            f"with_producer() asks for an alias that {conf.NAME} does not have.",
            hint=f"Configure {alias!r}, or correct "
            f"{', '.join(dict.fromkeys([*views, *of_classes.get(alias, ())])) or 'the view'}; configured: "
            f"{', '.join(map(repr, known))}.",
            id="kombu_pools.E003",
        )
        for alias, views in sorted(used_aliases.items())
        if alias not in known
    ]


def _decorated_views() -> dict[str, list[str]]:
    """Return the names of the decorated views in the URLconf by alias. Imports them, as Django's own check does."""
    from django.urls import get_resolver

    found: dict[str, list[str]] = {}
    if not getattr(django_settings, "ROOT_URLCONF", None):
        return found
    # Django's own check reports what is wrong with the URLconf.
    with contextlib.suppress(Exception):
        waiting: list[Any] = [get_resolver()]
        while waiting:
            one = waiting.pop()
            waiting += getattr(one, "url_patterns", ())
            for alias, name in decorated_in(getattr(one, "callback", None)):
                found.setdefault(alias, []).append(name)
    return found


@register(TAG)
def check_drivers(**kwargs: Any) -> list[CheckMessage]:
    """E004: the module that a transport needs is not installed."""
    found: list[CheckMessage] = []
    for alias, settings in _valid().items():
        missing = settings.missing_driver()
        if missing:
            found.append(
                Error(
                    f"The driver for {settings.transport}:// is not installed.",
                    hint=f"{_at(alias)}: {missing}",
                    id="kombu_pools.E004",
                )
            )
    return found


@register(TAG)
def check_control(**kwargs: Any) -> list[CheckMessage]:
    """E005: ``KOMBU_POOLS_CONTROL`` is wrong; one for each problem."""
    known = _valid()
    try:
        conf.control_settings(known)
    except SettingsError as error:
        return [
            _wrong(problem, conf.CONTROL, "kombu_pools.E005")
            for problem in error.problems
            # The aliases are known only if KOMBU_POOLS is right.
            if known or problem.key != "BROADCAST"
        ]
    return []


@register(TAG)
def check_credentials_path(**kwargs: Any) -> list[CheckMessage]:
    """E006: the function that CREDENTIALS names cannot be imported, or is not callable."""
    found: list[CheckMessage] = []
    for alias, settings in _valid().items():
        credentials = Credentials.of(settings)
        if credentials is None:
            continue
        try:
            credentials.load()
        except Exception as error:
            # The text of another error that a module raises at its import may contain a secret.
            ours = isinstance(error, ImportError | TypeError)
            why = str(error) if ours else f"importing it raised {type(error).__name__}"
            found.append(
                Error(
                    "The function that CREDENTIALS names cannot be called.",
                    hint=f"{_at(alias)}: {why}",
                    id="kombu_pools.E006",
                )
            )
    return found


@register(TAG)
def check_celery(**kwargs: Any) -> list[CheckMessage]:
    """E007: ``KOMBU_POOLS_CELERY`` is wrong; one for each problem."""
    try:
        conf.celery_alias(_valid() or None)
    except SettingsError as error:
        return [_wrong(problem, conf.CELERY, "kombu_pools.E007") for problem in error.problems]
    return []


@register(TAG)
def check_celerys_broker(**kwargs: Any) -> list[CheckMessage]:
    """E008: the broker of the Celery application is not that of the alias that it publishes over."""
    if not _valid() or check_celery() or getattr(django_settings, conf.CELERY, None) is None:
        return []
    from kombu_pools_ext.contrib.celery import wrong_with
    from kombu_pools_ext.contrib.celery.project import default_app

    app = default_app()
    wrong = None if app is None else wrong_with(app)
    if wrong is None:
        return []
    return [
        Error(
            "The Celery app and the pool that it publishes over have different brokers.",
            hint=f"{wrong}.",
            id="kombu_pools.E008",
        )
    ]


@register(TAG)
def check_outbox(**kwargs: Any) -> list[CheckMessage]:
    """E011: an alias has ``OUTBOX``, and the application of the outbox is not installed."""
    if apps.is_installed(OUTBOX):
        return []
    return [
        Error(
            "OUTBOX is set, and the outbox has no tables.",
            hint=f'{_at(alias)}: add "{OUTBOX}" to INSTALLED_APPS, and run manage.py migrate.',
            id="kombu_pools.E011",
        )
        for alias, settings in _valid().items()
        if settings.outbox
    ]


@register(TAG)
def check_limits(**kwargs: Any) -> list[CheckMessage]:
    """W001: a limit is below the number of threads of the server."""
    threads = servers.known_threads()
    if threads is None:
        return []
    found: list[CheckMessage] = []
    for alias, settings in _valid().items():
        limit = get_limit() if settings.uses_global_limit else settings.limit
        if isinstance(limit, int) and 0 < limit < threads.number:
            found.append(
                Warning(
                    f"A pool's limit of {limit} is below the server's {threads.number} threads.",
                    hint=f"{_at(alias)}: threads that hold a lease at the same time wait for each other; set LIMIT to "
                    f"{threads.number} or more (threads as in {threads.source}); see {Page.SIZE_A_POOL}.",
                    id="kombu_pools.W001",
                )
            )
    return found


@register(TAG, deploy=True)
def check_credentials(**kwargs: Any) -> list[CheckMessage]:
    """W002: a broker is used with the credentials that every RabbitMQ is installed with."""
    return [
        Warning(
            "A broker is used with the credentials guest:guest.",
            hint=f"{_at(alias)}: everybody knows them; make a user of your own, with a password.",
            id="kombu_pools.W002",
        )
        for alias, settings in _valid().items()
        if not settings.asks_for_credentials
        and any(
            (settings.is_amqp or settings.transport == "librabbitmq")
            # Without credentials, py-amqp uses these.
            and (parts["userid"] or "guest", parts["password"] or "guest") == ("guest", "guest")
            for parts in _parts(settings)
        )
    ]


@register(TAG, deploy=True)
def check_encryption(**kwargs: Any) -> list[CheckMessage]:
    """W003: messages and passwords are sent to another machine without encryption."""
    return [
        Warning(
            "A broker on another machine is used without TLS.",
            hint=f"{_at(alias)}: set SSL, or write {_with_tls(settings)} into the URL, unless the network itself "
            f"is encrypted; see {Page.TLS}.",
            id="kombu_pools.W003",
        )
        for alias, settings in _valid().items()
        if not settings.ssl
        and any(
            parts["transport"] in _PLAIN
            and not parts.get("ssl")
            and not _is_local(parts["hostname"])
            for parts in _parts(settings)
        )
    ]


def _with_tls(settings: PoolSettings) -> str:
    return "amqps://" if settings.is_amqp else "rediss://"


def _is_local(host: str | None) -> bool:
    if not host or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Names are not looked up. A path is that of a local socket.
        return host.startswith("/")


@register(TAG, deploy=True)
def check_memory(**kwargs: Any) -> list[CheckMessage]:
    """W004: messages stay in the memory of the process that published them."""
    return [
        Warning(
            "A pool uses memory://, where no other process sees its messages.",
            hint=f"{_at(alias)}: messages are lost when the process ends; give it the URL of a broker; "
            f"see {Page.MEMORY}.",
            id="kombu_pools.W004",
        )
        for alias, settings in _valid().items()
        if settings.transport == "memory"
    ]


@register(TAG, deploy=True)
def check_error_pages(**kwargs: Any) -> list[CheckMessage]:
    """W005: Django's error mails show a URL with its password."""
    try:
        reporter: Any = import_string(django_settings.DEFAULT_EXCEPTION_REPORTER_FILTER)()
        shown = set(_texts_in(reporter.cleanse_setting(conf.NAME, conf.configured())))
    except Exception:
        # The project may have its own filter, which may fail here.
        return []
    return [
        Warning(
            "Error pages and mails of Django show a URL with its password.",
            hint=f"{_at(alias)}: write HOST, USER and PASSWORD in place of URL, or set "
            'DEFAULT_EXCEPTION_REPORTER_FILTER = "django_app.debug.SafeExceptionReporterFilter".',
            id="kombu_pools.W005",
        )
        for alias, settings in _valid().items()
        if any(
            parts["password"] not in (None, "guest") and any(url in text for text in shown)
            for url in settings.url
            for parts in _parts_of(url)
        )
    ]


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts_in(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts_in(one)


def _at(alias: str) -> str:
    return f"{conf.NAME}[{alias!r}]"
