"""No password in what is shown, logged or raised, nor in the frames of ours that an error reporter collects."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import kombu
import pytest

import kombu_pools_ext
from kombu_pools_ext import connections, producers
from kombu_pools_ext.aliases import Pools, configure
from kombu_pools_ext.broker.naming import describe_resource, masked_uri, uri_of
from kombu_pools_ext.control import attach, local
from kombu_pools_ext.control.options import parse_control
from kombu_pools_ext.settings import PoolSettings, SettingsError, parse_settings
from tests.brokers import free_port

ROOT = Path(kombu_pools_ext.__file__).parent.parent
OURS = tuple(str(ROOT / package) for package in ("kombu_pools_ext", "django_app", "flask_ext"))

WORD = "Secret77"
#: The word, with each character that URLs have a use for at its head, in its middle and at its end.
AWKWARD = sorted(
    {
        password
        for one in "/@:#?%;&=+[]!$,'\"\\ <>{}|^`~é\u20ac"
        for password in (f"{one}{WORD}", f"Se{one}{WORD}", f"{WORD}{one}", f"{one}{one}{WORD}{one}")
    }
)


# -- what an error reporter sees -----------------------------------------------------------------------------------


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and all that it came of."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or any(one is other for other in seen):
            continue
        seen.append(one)
        yield one
        waiting += [one.__cause__, one.__context__]
        waiting += (
            [*getattr(one, "failures", {})]
            if isinstance(getattr(one, "failures", None), tuple)
            else [*getattr(one, "failures", {}).values()]
        )


def shown(value: object, levels: int = 5) -> Iterator[str]:
    """A value as Sentry serialises a local variable: containers by their items, all else by its repr."""
    if levels and isinstance(value, Mapping):
        for key, one in value.items():
            yield from shown(key, levels - 1)
            yield from shown(one, levels - 1)
    elif levels and isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from shown(one, levels - 1)
    else:
        try:
            yield repr(value)
        except Exception as error:
            yield repr(error)


def locals_of(error: BaseException) -> Iterator[tuple[str, str]]:
    """Where, and what, for each local of a frame of ours."""
    step: TracebackType | None = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        # Of the methods that dataclass makes, too.
        if code.co_filename.startswith(OURS) or code.co_filename == "<string>":
            for name, value in step.tb_frame.f_locals.items():
                for text in shown(value):
                    yield f"{Path(code.co_filename).name}:{code.co_name}:{name}", text
        step = step.tb_next


def told_by(error: BaseException) -> Iterator[tuple[str, str]]:
    """All that may be seen of an error."""
    for one in chain(error):
        yield f"{type(one).__name__}", f"{one!r} {one} {one.args!r}"
        yield "notes", " ".join(getattr(one, "__notes__", ()))
        yield "traceback", "".join(traceback.format_exception(one))
        yield from locals_of(one)


def leaks(texts: Iterator[tuple[str, str]], word: str = WORD) -> list[str]:
    return [
        f"{where}: …{text[max(0, text.find(word) - 60) :][:120]}"
        for where, text in texts
        if word in text
    ]


def raised(work: Callable[[], object]) -> BaseException | None:
    try:
        work()
    except BaseException as error:
        return error
    return None


def test_the_look_finds_what_is_there() -> None:
    def fail(given: Any) -> None:
        raise ValueError("wrong")

    error = raised(lambda: fail({"a": [f"x{WORD}"]}))
    assert error is not None
    assert not leaks(told_by(error)), "these frames are not ours"
    error = raised(lambda: kombu_pools_ext.pools.set_limit(WORD))  # type: ignore[arg-type]
    assert error is not None
    assert leaks(locals_of(error))


# -- wrong settings ------------------------------------------------------------------------------------------------

GOOD = f"amqp://shop:{WORD}@127.0.0.1:1//"
WRONG: Mapping[str, Any] = {
    "typo beside": {"default": {"URL": GOOD, "LIMT": 3}},
    "value beside": {"default": {"URL": GOOD, "LIMIT": -3}},
    "of another alias": {"default": {"URL": GOOD}, "other": {"LIMIT": 3}},
    "no dict": {"default": [GOOD]},
    "a URL": GOOD,
    "list": [GOOD],
    "nothing": {"default": {"URL": ""}, "other": GOOD},
    "unescaped": {"default": f"amqp://shop:/{WORD}@h//"},
    "in a list": {"default": {"URL": [f"amqp://shop:/{WORD}@h//", GOOD]}},
    "in options": {
        "default": {"URL": GOOD, "SSL": 3, "TRANSPORT_OPTIONS": {"password": WORD, 1: 2}}
    },
    "a password of its own": {
        "default": {"HOST": "h", "USER": "u", "PASSWORD": WORD, "TRANSPORT": "amqp", "LIMT": 1}
    },
    "beside a URL": {"default": {"URL": GOOD, "PASSWORD": WORD, "USER": "u"}},
    "in the place of a function": {"default": {"URL": "amqp://h//", "CREDENTIALS": ("u", WORD)}},
    "a text in its place": {"default": {"URL": "amqp://h//", "CREDENTIALS": WORD}},
    "no URL": {"default": {"URL": f"shop:{WORD}@h"}},
    "key": {"default": {f"URL{WORD}@": GOOD}} and {f"amqp://shop:{WORD}@h//": {"LIMIT": 1}},
}
READERS: Mapping[str, Callable[[Any], object]] = {
    "parse_settings": parse_settings,
    "Pools": Pools,
    "Pools of a function": lambda given: Pools(lambda: given).settings,
    "keywords": lambda given: Pools(**given) if isinstance(given, dict) else Pools(given),
    "configure": configure,
    "PoolSettings.of": lambda given: PoolSettings.of(url=given, limit=-1),
    "PoolSettings": lambda given: PoolSettings(url=GOOD, limit=given),
    "attach": lambda given: attach(Pools(default="memory://"), {"KEY": WORD, "BRODCAST": given}),
    "parse_control": lambda given: parse_control({"KEY": WORD, "ENABLED": given}, ()),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", WRONG)
def test_wrong_settings_are_in_no_frame_of_ours(reader: str, what: str) -> None:
    error = raised(lambda: READERS[reader](WRONG[what]))
    assert isinstance(error, SettingsError | TypeError)
    assert leaks(told_by(error)) == []


@pytest.mark.parametrize("what", WRONG)
def test_wrong_settings_of_a_reload_are_in_no_frame_of_ours(what: str) -> None:
    current: Any = {"default": "memory://"}
    pools = Pools(lambda: current)
    assert pools.settings
    current = WRONG[what]
    error = raised(pools.reload)
    assert isinstance(error, SettingsError)
    assert leaks(told_by(error)) == []
    assert WORD not in repr(local.reload(pools))


@pytest.mark.parametrize("what", WRONG)
def test_wrong_settings_of_flask_are_in_no_frame_of_ours(what: str) -> None:
    flask = pytest.importorskip("flask")
    from flask_ext import KombuPools

    app = flask.Flask("shop")
    app.config.update(KOMBU_POOLS=WRONG[what])
    error = raised(lambda: KombuPools(app))
    assert isinstance(error, SettingsError)
    assert leaks(told_by(error)) == []
    app.config.update(KOMBU_POOLS=None, KOMBU_POOLS_URL=f"amqp://shop:/{WORD}@h//")
    error = raised(lambda: KombuPools(app))
    assert isinstance(error, SettingsError)
    assert leaks(told_by(error)) == []


@pytest.mark.threads
def test_wrong_settings_of_django_are_in_no_frame_of_ours(tmp_path: Path) -> None:
    pytest.importorskip("django")
    program = f"""
import sys
sys.path[:0] = {[str(ROOT), str(Path(__file__).parents[2])]!r}
import json
from django.conf import settings
settings.configure(INSTALLED_APPS=["django_app"], SECRET_KEY="x", KOMBU_POOLS=json.loads(sys.stdin.read()))
import django
django.setup()
from django_app import conf
from tests.broker.test_secrets import leaks, raised, told_by
error = raised(lambda: conf.pools.settings)
print(type(error).__name__)
print(leaks(told_by(error)))
"""
    for what in ("typo beside", "a URL", "list", "in a list"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(WRONG[what]),
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            check=True,
        )
        assert done.stdout.splitlines() == ["PoolsImproperlyConfigured", "[]"]
        assert WORD not in done.stderr


# -- brokers that cannot be reached ----------------------------------------------------------------------------------


def texts_of(pools: Pools, log: io.StringIO) -> Iterator[tuple[str, str]]:
    """All that pools show of themselves, and what comes of using them where nobody listens."""
    for work in (
        lambda: pools.publish({}, "secrets"),
        lambda: pools.connections["default"].acquire(timeout=1),
        lambda: pools.wait_ready(0.2),
    ):
        error = raised(work)
        assert error is not None
        yield from told_by(error)
    yield "ping", repr(local.ping(pools, timeout=1))
    yield "status", repr(local.status(pools))
    yield "reset", repr(local.reset(pools))
    yield "pools", repr(pools) + repr(pools.settings) + repr(pools.settings["default"].identity)
    for group in (pools.connections, pools.producers):
        pool = group["default"]
        yield (
            "pool",
            f"{group!r} {pool!r} {pool.name} {pool.stats()!r} {group.group!r} {list(group.group)!r}",
        )
    yield "log", log.getvalue()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize(
    "scheme", ["amqp", "amqps", pytest.param("redis", marks=pytest.mark.redis)]
)
def test_an_unreachable_broker_shows_no_password(scheme: str, log: io.StringIO) -> None:
    port = free_port()
    tail = "0" if scheme == "redis" else "/"
    one = f"{scheme}://shop:{WORD}@127.0.0.1:{port}/{tail}"
    for urls in (one, [one, one.replace("127.0.0.1", "localhost")]):
        settings = {"URL": urls, "CONNECT_TIMEOUT": 1, "OUTAGE_PATIENCE": 0, "RETRY": None}
        assert leaks(texts_of(Pools({"default": settings}), log)) == []


@pytest.mark.parametrize("transport", ["amqp", pytest.param("redis", marks=pytest.mark.redis)])
def test_neither_does_one_beside_the_url_or_from_a_function(
    transport: str, log: io.StringIO
) -> None:
    port = free_port()
    beside = {"HOST": "127.0.0.1", "PORT": port, "TRANSPORT": transport, "CONNECT_TIMEOUT": 1}
    beside |= {"OUTAGE_PATIENCE": 0, "RETRY": None}

    def fail() -> Any:
        raise LookupError("the vault is closed")

    for more in (
        {"USER": "shop", "PASSWORD": f"/{WORD}@"},
        {"USER": "shop", "CREDENTIALS": lambda: f"/{WORD}@"},
        {"USER": "shop", "CREDENTIALS": lambda: (WORD, WORD, WORD)},
        {"CREDENTIALS": lambda: ["shop", f"/{WORD}@"]},
        {"USER": "shop", "CREDENTIALS": fail},
    ):
        assert leaks(texts_of(Pools({"default": {**beside, **more}}), log)) == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["amqp", pytest.param("redis", marks=pytest.mark.redis)])
def test_no_character_makes_a_password_appear(scheme: str, log: io.StringIO) -> None:
    """Escaped as it should be, or not at all: then it is refused, or read as it was written."""
    port = free_port()
    tail = "0" if scheme == "redis" else "/"
    found = []
    for password in AWKWARD:
        for written in (quote(password, safe=""), password):
            url = f"{scheme}://shop:{written}@127.0.0.1:{port}/{tail}"
            for urls in (url, [url, url], f"{url};{url}"):
                settings = {
                    "URL": urls,
                    "CONNECT_TIMEOUT": 1,
                    "OUTAGE_PATIENCE": 0,
                    "RETRY": None,
                    "ACQUIRE_TIMEOUT": 1,
                }
                error = raised(lambda settings=settings: Pools({"default": settings}))
                if error is not None:
                    found += leaks(told_by(error))
                    continue
                pools = Pools({"default": settings})
                error = raised(lambda pools=pools: pools.publish({}, "secrets"))
                assert error is not None
                found += leaks(told_by(error))
                found += leaks(
                    iter([("repr", repr(pools.connections["default"])), ("log", log.getvalue())])
                )
                found += leaks(iter([("ping", repr(local.ping(pools, timeout=1)))]))
                assert not found, (urls, found)
    assert found == []


def test_a_connection_that_kombu_has_misread_shows_no_piece_of_it(log: io.StringIO) -> None:
    for url in (
        f"amqp://user:/{WORD}@127.0.0.1//",
        f"amqp://127.0.0.1:/{WORD}@h//",
        f"redis://:/{WORD}@h/0",
    ):
        connection = kombu.Connection(url)
        assert WORD in connection.as_uri()
        for text in (uri_of(connection), masked_uri(connection), describe_resource(connection)):
            assert WORD not in text
        for group in (connections, producers):
            pool = raised(lambda group=group, c=connection: group[c]) or group[connection]
            assert WORD not in f"{pool!r} {list(group)!r}"
            error = raised(lambda c=connection: connections["memory://x"].release(c))
            assert WORD not in str(error)
    assert WORD not in log.getvalue()


def test_a_lease_shows_no_password(amqp_url: str) -> None:
    for pool in (connections[amqp_url], producers[amqp_url]):
        with pool.acquire(timeout=30) as lease:
            connection = lease if isinstance(lease, kombu.Connection) else lease.connection
            assert ":guest@" not in f"{lease!r} {connection!r} {connection.as_uri()}"
            assert ":guest@" in connection.as_uri(include_password=True)


@pytest.mark.parametrize(
    "given", [f"u:{WORD}@h", f"amqp://u:{WORD}@h//".encode(), [1], {"a": WORD}]
)
def test_what_is_looked_up_by_mistake_is_not_shown(given: Any) -> None:
    error = raised(lambda: connections[given])
    assert error is not None
    assert WORD not in f"{error} {error!r} {getattr(error, '__notes__', '')}"
