"""``HOST``, ``USER``, ``PASSWORD`` and the other parts in place of a URL, and ``CREDENTIALS``."""

from __future__ import annotations

import dataclasses
import functools
import pickle
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kombu_pools_ext import Pools
from kombu_pools_ext.settings import PoolSettings, Problem, SettingsError, parse_settings

SECRET = "s3cr3t-Pa55"
AMQP = "amqp://guest:guest@localhost//"
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


def problems_of(**settings: Any) -> list[Problem]:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"default": settings})
    assert caught.value.__context__ is None
    assert SECRET not in f"{caught.value} {caught.value.problems!r}"
    return list(caught.value.problems)


def the_problem(**settings: Any) -> Problem:
    (problem,) = problems_of(**settings)
    return problem


# -- parts of a URL ----------------------------------------------------------------------------------------------------


@given(texts, texts.filter(lambda text: text.strip("\r\n") == text), texts)
@example("app", "p@ss/w#rd", "shop")
@example("app", "a@b?c", "/")
@example("a:b", "%41", "%2F")
def test_parts_are_read_back_exactly(user: str, password: str, vhost: str) -> None:
    (settings,) = parse_settings(
        {
            "default": {
                "HOST": "rabbit.internal",
                "PORT": 5673,
                "USER": user,
                "PASSWORD": password,
                "VHOST": vhost,
                "TRANSPORT": "amqps",
            }
        }
    ).values()
    connection = settings.connection()
    assert (connection.userid, connection.password, connection.virtual_host) == (
        user,
        password,
        vhost,
    )
    assert (connection.hostname, connection.port) == ("rabbit.internal", 5673)
    assert settings.transport == "amqps"


@pytest.mark.parametrize(
    "given, url",
    [
        ({"HOST": "h"}, "amqp://h/"),
        ({"host": "h"}, "amqp://h/"),
        ({"HOST": "h", "PORT": None, "USER": None, "PASSWORD": None, "VHOST": None}, "amqp://h/"),
        ({"HOST": "h", "VHOST": "/"}, "amqp://h/%2F"),
        ({"HOST": "h", "VHOST": "shop", "TRANSPORT": "AMQPS"}, "amqps://h/shop"),
        ({"HOST": "::1", "PORT": 5673}, "amqp://[::1]:5673/"),
        ({"HOST": "[fe80::1%eth0]"}, "amqp://[fe80::1%25eth0]/"),
        ({"HOST": "h", "TRANSPORT": "redis", "PASSWORD": "p/w"}, "redis://:p%2Fw@h/"),
        ({"HOST": "h", "TRANSPORT": "rediss", "VHOST": 3}, "rediss://h/3"),
        ({"HOST": "h", "TRANSPORT": "redis", "VHOST": "3"}, "redis://h/3"),
        ({"HOST": "h", "TRANSPORT": "redis", "USER": "app"}, "redis://app@h/"),
        ({"TRANSPORT": "memory"}, "memory:///"),
        ({"TRANSPORT": "sqs", "USER": "key", "PASSWORD": "a/b"}, "sqs://key:a%2Fb@/"),
    ],
)
def test_parts_are_made_into_a_url(given: dict[str, Any], url: str) -> None:
    assert parse_settings({"default": given})["default"].url == (url,)


def test_several_hosts_make_a_failover_list() -> None:
    settings = PoolSettings.of(host=["a", "::1"], port=5673, user="u", password="p", vhost="v")
    assert settings.url == ("amqp://u:p@a:5673/v", "amqp://u:p@[::1]:5673/v")
    connection = settings.connection()
    connection.maybe_switch_next()
    assert (connection.hostname, connection.port, connection.virtual_host) == ("::1", 5673, "v")
    assert settings.identity == PoolSettings.of(url=list(settings.url)).identity


@pytest.mark.parametrize(
    "given, key, message, hint",
    [
        ({"URL": AMQP, "HOST": "h"}, "URL", "given as well as HOST,", "remove URL, or HOST"),
        (
            {"url": AMQP, "user": "u", "password": SECRET},
            "url",
            "given as well as user, password,",
            "remove url, or user, password",
        ),
        ({"USER": "u", "PASSWORD": SECRET}, "HOST", "missing", "URL: a broker URL looks like"),
        ({"HOST": None, "PORT": 5672}, "HOST", "missing", ""),
        ({"HOST": ""}, "HOST", "'' is neither a name", "is a variable not set?"),
        ({"HOST": []}, "HOST", "the list of hosts is empty", ""),
        ({"HOST": 5}, "HOST", "expected a name", ""),
        ({"HOST": ["a", 5]}, "HOST", "host 2 of 2: expected a name", ""),
        ({"HOST": f"amqp://u:{SECRET}@h"}, "HOST", "this is neither", "the setting URL"),
        ({"HOST": "a,b"}, "HOST", "'a,b' is neither", "write several hosts as a list"),
        ({"HOST": "a;b"}, "HOST", "'a;b' is neither", "write several hosts as a list"),
        ({"HOST": "a:5672"}, "HOST", "'a:5672' is neither", "the setting PORT"),
        ({"HOST": "/run/s", "TRANSPORT": "redis"}, "HOST", "is neither", "redis+socket://"),
        ({"HOST": "h", "PORT": "5672"}, "PORT", "expected a whole number", "did you mean 5672?"),
        ({"HOST": "h", "PORT": 0}, "PORT", "expected a whole number from 1 to 65535", ""),
        ({"HOST": "h", "PORT": True}, "PORT", "expected a whole number", ""),
        ({"HOST": "h", "USER": "u"}, "PASSWORD", "missing, but USER is given", "CREDENTIALS"),
        ({"HOST": "h", "PASSWORD": SECRET}, "USER", "missing, but PASSWORD is given", ""),
        ({"HOST": "h", "USER": "u", "PASSWORD": ""}, "PASSWORD", "it is empty", "None"),
        ({"HOST": "h", "USER": "u", "PASSWORD": f"{SECRET}\n"}, "PASSWORD", "line break", "strip"),
        ({"HOST": "h", "USER": "u", "PASSWORD": SECRET.encode()}, "PASSWORD", "type bytes", ""),
        ({"HOST": "h", "USER": "u", "PASSWORD": f"{SECRET}\0"}, "PASSWORD", "null character", ""),
        (
            {"HOST": "h", "USER": "u", "PASSWORD": f"{SECRET}\ud800"},
            "PASSWORD",
            "cannot be encoded in UTF-8",
            "",
        ),
        ({"HOST": "h", "USER": 5, "PASSWORD": SECRET}, "USER", "expected a text", "quote it"),
        ({"HOST": "h", "VHOST": ""}, "VHOST", "it is empty", ""),
        ({"HOST": "h", "VHOST": "x", "TRANSPORT": "redis"}, "VHOST", "number of a Redis", ""),
        ({"HOST": "h", "TRANSPORT": "ampq"}, "TRANSPORT", "expected the name", "'amqp'"),
        ({"HOST": "h", "TRANSPORT": 5}, "TRANSPORT", "expected the name", "known: "),
        (
            {"HOST": "h", "TRANSPORT": "sqla"},
            "TRANSPORT",
            "reads its URL in its own way",
            "setting URL",
        ),
        ({"URL": AMQP, "USERNAME": "u"}, "USERNAME", "is not a setting", "'USER'"),
        ({"URL": AMQP, "virtual_host": "u"}, "virtual_host", "is not a setting", "'vhost'"),
        ({"URL": AMQP, "PASWORD": SECRET}, "PASWORD", "is not a setting", "'PASSWORD'"),
    ],
    ids=str,
)
def test_wrong_parts_are_reported(given: dict[str, Any], key: str, message: str, hint: str) -> None:
    problem = the_problem(**given)
    assert (problem.alias, problem.key) == ("default", key)
    assert message in problem.message
    assert hint in problem.hint


def test_a_password_in_a_wrong_part_is_not_shown() -> None:
    settings = PoolSettings.of(host="h", user="app", password=f"{SECRET}/@#?")
    assert settings.uri == "amqp://app:**@h/"
    assert repr(settings) == "PoolSettings('amqp://app:**@h/')"
    pools = Pools(default={"HOST": "h", "USER": "app", "PASSWORD": f"{SECRET}/@#?"})
    pool = pools.connections["default"]
    assert SECRET not in f"{pools!r} {pools.settings!r} {pool!r} {pool.name} {pool.stats()!r}"


def test_settings_made_of_parts_can_be_replaced_and_pickled() -> None:
    settings = PoolSettings.of(host="h", user="app", password=SECRET)
    assert dataclasses.replace(settings, limit=3).url == settings.url
    assert pickle.loads(pickle.dumps(settings)) == settings


# -- credentials -------------------------------------------------------------------------------------------------------


def ask() -> tuple[str, str]:
    return "app", SECRET


async def ask_async() -> str:
    return SECRET


class Provider:
    def get_credentials(self) -> tuple[str, str]:
        return "app", SECRET

    async def __call__(self) -> str:
        return SECRET


@pytest.mark.parametrize(
    "given",
    [
        ask,
        lambda: SECRET,
        lambda user="app": SECRET,
        functools.partial(max, "a", "b"),
        Provider().get_credentials,
        f"{__name__}.ask",
        f"{__name__}:Provider.get_credentials",
        "os.path.join",
    ],
    ids=str,
)
def test_valid_credentials_are_accepted(given: Any) -> None:
    settings = PoolSettings.of(host="h", user="app", credentials=given)
    assert settings.credentials is given
    assert settings.asks_for_credentials
    assert PoolSettings.of(host="h", credentials=None).credentials is None


@pytest.mark.parametrize(
    "given, message, hint",
    [
        (f"guest:{SECRET}", "the text is not a dotted path", "'shop.vault.credentials'"),
        ("credentials", "the text is not a dotted path", ""),
        ("", "the text is not a dotted path", ""),
        ("no_such_package.credentials", "the module in the path does not exist", "misspelt"),
        (
            f"{__name__}.Provider.get_credentials",
            "the module in the path does not exist",
            "'module:Class",
        ),
        (("app", SECRET), "got a value of type tuple", "USER and PASSWORD"),
        ({"app": SECRET}, "got a value of type dict", "USER and PASSWORD"),
        (5, "got a value of type int", ""),
        (type("P", (), {}), "got a class", ""),
        (
            type("P", (), {"get_credentials": ask})(),
            "got a value of type P",
            "provider.get_credentials",
        ),
        (ask_async, "it is async", "plain function"),
        (Provider(), "it is async", "plain function"),
        (functools.partial(ask_async), "it is async", "plain function"),
        (lambda user: SECRET, "it takes arguments", "functools.partial"),
    ],
    ids=str,
)
def test_credentials_that_cannot_be_called_are_reported(
    given: Any, message: str, hint: str
) -> None:
    problem = the_problem(HOST="h", CREDENTIALS=given)
    assert problem.key == "CREDENTIALS"
    assert message in problem.message
    assert hint in problem.hint


@pytest.mark.parametrize(
    "settings, key, message",
    [
        ({"URL": f"amqp://app:{SECRET}@h"}, "CREDENTIALS", "there is a password as well"),
        (
            {"HOST": "h", "USER": "app", "PASSWORD": SECRET},
            "CREDENTIALS",
            "there is a password as well",
        ),
        (
            {"HOST": "h", "TRANSPORT_OPTIONS": {"password": SECRET}},
            "TRANSPORT_OPTIONS",
            "'password' would override CREDENTIALS",
        ),
        (
            {"URL": "redis://h", "TRANSPORT_OPTIONS": {"credential_provider": object()}},
            "TRANSPORT_OPTIONS",
            "'credential_provider' is set as well as CREDENTIALS",
        ),
        ({"URL": "redis+socket:///s"}, "CREDENTIALS", "only with AMQP and Redis over TCP"),
        ({"TRANSPORT": "sqs"}, "CREDENTIALS", "only with AMQP and Redis"),
        ({}, "URL", "missing"),
    ],
    ids=str,
)
def test_settings_that_contradict_credentials_are_reported(
    settings: dict[str, Any], key: str, message: str
) -> None:
    problem = the_problem(CREDENTIALS=ask, **settings)
    assert problem.key == key
    assert message in problem.message


def test_the_memory_transport_does_not_call_credentials() -> None:
    assert not PoolSettings.of(url="memory://", credentials=ask).asks_for_credentials


def test_equal_credentials_share_a_pool_and_different_ones_do_not() -> None:
    def identity(credentials: Any) -> object:
        return PoolSettings.of(host="h", credentials=credentials).identity

    def asks_for(name: str) -> Any:
        return lambda: name

    provider = Provider()
    assert identity(ask) == identity(ask) != identity(f"{__name__}.ask") != identity(None)
    assert identity(provider.get_credentials) == identity(provider.get_credentials)
    # As they are made anew by whoever reads the settings anew.
    assert identity(asks_for("a")) == identity(asks_for("a")) != identity(asks_for("b"))
    assert identity(functools.partial(max, 1, 2)) == identity(functools.partial(max, 1, 2))
    assert identity(functools.partial(max, 1, 2)) != identity(functools.partial(max, 1, 3))
    assert "ask" not in repr(identity(ask))


def test_repr_shows_no_credentials() -> None:
    shown = repr(PoolSettings.of(host="h", credentials=functools.partial(max, SECRET, "a")))
    assert shown == "PoolSettings('amqp://h/', credentials=<partial>)"
