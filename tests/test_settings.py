"""Settings: all mistakes are reported at once, nothing is opened, and no secret is shown."""

from __future__ import annotations

import dataclasses
import inspect
import math
import pickle
import ssl
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kombu
import kombu.pools
import pytest
from amqp.transport import SSLTransport
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.url import parse_url

from kombu_pools_ext import Pools, configure
from kombu_pools_ext.engine import PoolOptions
from kombu_pools_ext.masking import describe, mask_url, show
from kombu_pools_ext.settings import (
    PoolSettings,
    Problem,
    RetryPolicy,
    SettingsError,
    UseGlobalLimit,
    parse_settings,
    use_global_limit,
)
from kombu_pools_ext.settings import urls as broker_urls
from kombu_pools_ext.settings.misspelt import MisspeltNames
from kombu_pools_ext.settings.tls import AMQP_OPTIONS, REDIS_OPTIONS
from kombu_pools_ext.settings.url_checks import EXAMPLE

SECRET = "s3cr3t-Pa55"
AMQP = "amqp://guest:guest@localhost//"


def problems_of(value: object) -> tuple[Problem, ...]:
    with pytest.raises(SettingsError) as caught:
        parse_settings(value)
    # What an exception of urllib's or kombu's quotes must not come along in a traceback.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value.problems


def the_problem(**settings: Any) -> Problem:
    """Return the only problem of an alias with these settings, and a valid URL unless one is given."""
    (problem,) = problems_of({"default": {"URL": AMQP, **settings}})
    assert problem.alias == "default"
    return problem


# -- what is meant -----------------------------------------------------------------------------------------------------


def test_defaults_match_the_documentation() -> None:
    settings = PoolSettings.of(url=AMQP)
    assert settings.url == (AMQP,)
    assert settings.limit is use_global_limit
    assert settings.uses_global_limit
    assert settings.own_limit(10) == 10
    assert settings.acquire_timeout == 5.0
    assert settings.heartbeat == 60.0
    assert settings.confirm is True
    assert settings.confirm_timeout == 10.0
    assert settings.mandatory == "default_exchange"
    assert settings.retry == RetryPolicy(
        max_retries=3, interval_start=0.0, interval_step=0.2, interval_max=1.0
    )
    assert settings.ssl is False
    assert settings.transport_options == {}
    assert settings.serializer is settings.compression is settings.connection_name is None
    assert settings.options == PoolOptions(
        waiting_per_item=100, outage_patience=10.0, from_settings=True
    )


def test_the_engine_gets_the_options_that_concern_it() -> None:
    values: dict[str, Any] = {
        "min_idle": 1,
        "max_waiting": 7,
        "connect_timeout": 1.5,
        "outage_patience": 2.5,
        "idle_timeout": None,
        "max_lifetime": 60.0,
        "check_after": 0.0,
        "leak_after": 30.0,
    }
    assert PoolSettings.of(url=AMQP, **values).options == PoolOptions(
        **values, waiting_per_item=100, from_settings=True
    )


def test_upper_case_lower_case_and_keywords_give_equal_settings() -> None:
    upper = parse_settings({"default": {"URL": AMQP, "LIMIT": 20, "RETRY": None}})["default"]
    lower = parse_settings({"default": {"url": AMQP, "limit": 20, "retry": None}})["default"]
    assert upper == lower == PoolSettings.of(url=AMQP, limit=20, retry=None)
    assert upper == PoolSettings(url=(AMQP,), limit=20, retry=None)
    assert upper != PoolSettings.of(url=AMQP, limit=21, retry=None)
    assert len({upper, lower}) == 1


def test_a_pool_may_be_a_url_or_ready_settings() -> None:
    ready = PoolSettings.of(url="memory://")
    assert parse_settings({"a": "memory://", "b": ready}) == {"a": ready, "b": ready}
    assert parse_settings({"b": ready})["b"] is ready
    assert parse_settings(types.MappingProxyType({"b": ready})) == {"b": ready}


@pytest.mark.parametrize(
    "given, urls",
    [
        ("amqp://a", ("amqp://a",)),
        ("amqp://a;amqps://b", ("amqp://a", "amqps://b")),
        (["amqp://a", "pyamqp://b"], ("amqp://a", "pyamqp://b")),
        (("redis://a;rediss://b", "redis://c"), ("redis://a", "rediss://b", "redis://c")),
        ("sentinel://a;sentinel://b", ("sentinel://a", "sentinel://b")),
        ("AMQP://a", ("AMQP://a",)),
        ("SQS://key:secret@", ("SQS://key:secret@",)),
        ("sqla+sqlite:////tmp/queue.db", ("sqla+sqlite:////tmp/queue.db",)),
        ("redis+socket:///run/redis.sock", ("redis+socket:///run/redis.sock",)),
        ("mongodb://a:1,b:2/queues", ("mongodb://a:1,b:2/queues",)),
        ("amqp://[::1]:5672//", ("amqp://[::1]:5672//",)),
        ("redis://h//3", ("redis://h//3",)),
        (
            "rediss://h/0?ssl_cert_reqs=required&ssl_ca_certs=/ca.pem",
            ("rediss://h/0?ssl_cert_reqs=required&ssl_ca_certs=/ca.pem",),
        ),
        ("amqp://h//?login_method=EXTERNAL", ("amqp://h//?login_method=EXTERNAL",)),
    ],
)
def test_urls_that_are_accepted(given: Any, urls: tuple[str, ...]) -> None:
    assert PoolSettings.of(url=given).url == urls


@pytest.mark.parametrize("limit", [0, None])
def test_no_limit(limit: int | None) -> None:
    settings = PoolSettings.of(url=AMQP, limit=limit, min_idle=4)
    assert settings.limit is None
    assert not settings.uses_global_limit
    assert settings.own_limit(10) is None


@pytest.mark.parametrize("limit", [use_global_limit, kombu.pools.use_global_limit])
def test_the_global_limit_can_be_asked_for(limit: Any) -> None:
    assert PoolSettings.of(url=AMQP, limit=limit).limit is UseGlobalLimit.USE_GLOBAL_LIMIT
    assert repr(use_global_limit) == "use_global_limit"


@pytest.mark.parametrize(
    "key, value, meant",
    [
        ("acquire_timeout", 0, 0.0),
        ("acquire_timeout", None, None),
        ("check_after", 0, 0.0),
        ("heartbeat", 60, 60.0),
        ("heartbeat", 65535.0, 65535.0),
        ("max_waiting", 0, 0),
        ("leak_after", 1, 1.0),
        ("serializer", "pickle", "pickle"),
        ("compression", "zlib", "zlib"),
        ("compression", "application/x-gzip", "application/x-gzip"),
        ("confirm", False, False),
        ("mandatory", True, True),
        ("mandatory", False, False),
        ("mandatory", "default_exchange", "default_exchange"),
        ("retry", {}, RetryPolicy()),
        (
            "retry",
            {"max_retries": 0, "interval_max": 9},
            RetryPolicy(max_retries=0, interval_max=9),
        ),
        ("retry", RetryPolicy(max_retries=1), RetryPolicy(max_retries=1)),
    ],
)
def test_values_that_are_accepted(key: str, value: Any, meant: Any) -> None:
    checked = getattr(PoolSettings.of(url=AMQP, **{key: value}), key)
    assert (checked, type(checked)) == (meant, type(meant))


def test_confirm_and_heartbeat_have_no_effect_beyond_amqp() -> None:
    plain = PoolSettings.of(url="redis://h")
    asked = PoolSettings.of(url="redis://h", confirm=False, heartbeat=9)
    assert asked.identity == plain.identity
    plain = PoolSettings.of(url="memory://")
    asked = PoolSettings.of(url="memory://", confirm=False, confirm_timeout=1, heartbeat=9)
    assert asked.identity == plain.identity


def test_mandatory_needs_confirms() -> None:
    without: tuple[dict[str, Any], ...] = (
        {"CONFIRM": False},
        {"TRANSPORT_OPTIONS": {"confirm_publish": False}},
    )
    for one in without:
        problem = the_problem(MANDATORY=True, **one)
        assert (problem.key, problem.message) == (
            "MANDATORY",
            "True needs confirms: without them a message that the broker returns is not noticed",
        )
        assert problem.hint == "leave CONFIRM True, or write False"
        lower = {name.lower(): value for name, value in one.items()}
        assert not PoolSettings.of(url=AMQP, **lower).has_confirms
    asked = PoolSettings.of(
        url=AMQP, confirm=False, mandatory=True, transport_options={"confirm_publish": True}
    )
    assert asked.has_confirms
    # No effect beyond AMQP, as that of confirms.
    assert not PoolSettings.of(url="redis://h", mandatory=True, confirm=False).has_confirms
    # It is the producers' affair.
    assert PoolSettings.of(url=AMQP, mandatory=True).identity == PoolSettings.of(url=AMQP).identity
    assert repr(PoolSettings.of(url="memory://", mandatory=False)) == (
        "PoolSettings('memory://', mandatory=False)"
    )


def test_confirm_timeout_bounds_each_answer_of_redis() -> None:
    plain = PoolSettings.of(url="redis://h")
    assert PoolSettings.of(url="redis://h", confirm_timeout=1).identity != plain.identity


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, [], "amqp://", 5, [("default", {"URL": AMQP})]])
def test_settings_that_are_not_a_dict_are_refused(value: object) -> None:
    (problem,) = problems_of(value)
    assert (problem.alias, problem.key) == (None, None)
    assert "expected a dict of aliases" in problem.message


@pytest.mark.parametrize("alias, shown", [("", ""), (5, "5"), (None, "None"), (("a",), "a tuple")])
def test_an_alias_that_is_not_a_name_is_refused(alias: object, shown: str) -> None:
    (problem,) = problems_of({alias: {"URL": AMQP}})
    assert (problem.alias, problem.key) == (shown, None)
    assert "name of a pool" in problem.message


@pytest.mark.parametrize(
    "alias, shown",
    [(f"amqp://guest:{SECRET}@h", "amqp://guest:**@h"), (f"guest:{SECRET}@h", "**")],
)
def test_an_alias_that_is_a_url_is_refused_and_not_shown(alias: str, shown: str) -> None:
    (problem,) = problems_of({alias: {"URL": AMQP}})
    assert (problem.alias, problem.key) == (shown, None)
    assert "without '://' or '@'" in problem.message


@pytest.mark.parametrize("value", [None, 5, ["amqp://a"], True])
def test_an_alias_with_a_value_of_the_wrong_type_is_refused(value: object) -> None:
    (problem,) = problems_of({"default": value})
    assert (problem.alias, problem.key) == ("default", None)
    assert problem.message.startswith("expected a URL or a dict of settings, got ")


@pytest.mark.parametrize(
    "key, hint",
    [
        ("LIMT", "did you mean 'LIMIT'?"),
        ("limt", "did you mean 'limit'?"),
        ("Limit", "did you mean 'LIMIT'?"),
        ("SERIALISER", "did you mean 'SERIALIZER'?"),
        ("CONFIRMS", "did you mean 'CONFIRM'?"),
        (
            "FROBNICATE",
            "known: URL, HOST, PORT, USER, PASSWORD, VHOST, TRANSPORT, CREDENTIALS, LIMIT",
        ),
    ],
)
def test_an_unknown_key_is_reported_with_the_nearest_one(key: str, hint: str) -> None:
    problem = the_problem(**{key: 1})
    assert problem.key == key
    assert problem.message == f"{key!r} is not a setting"
    assert problem.hint.startswith(hint)


def test_a_key_that_is_not_text_is_refused() -> None:
    (problem,) = problems_of({"default": {"URL": AMQP, 5: 6}})
    assert "expected the names of settings, got 5" in problem.message


def test_a_key_in_both_cases_is_reported() -> None:
    problem = the_problem(LIMIT=5, limit=5)
    assert (problem.key, problem.message) == ("limit", "given twice, as 'LIMIT' and 'limit'")


@pytest.mark.parametrize("settings", [{}, {"LIMIT": 5}])
def test_a_missing_url_is_reported(settings: dict[str, Any]) -> None:
    (problem,) = problems_of({"default": settings})
    assert (problem.alias, problem.key, problem.message) == ("default", "URL", "missing")
    assert "amqp://user:password@host" in problem.hint


@pytest.mark.parametrize(
    "url, message, hint",
    [
        ("", "the URL is empty", "a broker URL looks like"),
        (" ", "the URL is empty", "a broker URL looks like"),
        ([], "the list of URLs is empty", "at least one"),
        ([""], "the URL is empty", ""),
        ("amqp://a;", "'amqp://a;' has a ';' that no other URL follows", "';' as %3B"),
        (f"amqp://u:?{SECRET};@h", "'amqp://u:**@h' has a ';' that no other URL follows", ""),
        (
            f"amqp://u:{SECRET}@h;redis",
            "'amqp://u:**@h;redis' has a ';' that no other URL follows",
            "",
        ),
        (["amqp://a", "b://c"], "URL 2 of 2: 'b://c' has the unknown transport", ""),
        (None, "expected a broker URL, or a list of them, got None", ""),
        (5, "expected a broker URL, or a list of them, got 5", ""),
        ([AMQP, 5], "each a str, got 5", ""),
        ({"a": "b"}, "got a dict", ""),
        ("localhost", "a text of 9 characters without '://'", "looks like amqp://"),
        (f"guest:{SECRET}@h", "without '://'", "%40"),
        ("amqp://h//\n", "white space or control characters", "%20"),
        ("amqp://u:a b@h//", "'amqp://u:**@h//' has white space", "%20"),
        ("ampq://h", "the unknown transport 'ampq'", "did you mean 'amqp'?"),
        ("rabbitmq://h", "the unknown transport 'rabbitmq'", "did you mean 'amqp'?"),
        ("reddis://h", "the unknown transport 'reddis'", "did you mean 'redis'?"),
        ("zzzzzz://h", "the unknown transport 'zzzzzz'", "known: amqp, amqps, "),
        ("kombu.transport.memory:Transport://h", "has the unknown transport", ""),
        ("package.module+x://h", "the unknown transport 'package.module'", ""),
        ("://h", "the unknown transport ''", ""),
        ("amqp://h:99999", "port that is not a number from 1 to 65535", "%2F"),
        ("amqp://h:0", "port that is not a number", ""),
        ("amqp://h:http//", "'amqp://h:**' has a port", ""),
        (
            f"amqp://guest:{SECRET}/x@h",
            "'amqp://guest:**@h' has an '@' after the first '/'",
            "'/' as %2F",
        ),
        ("amqp://[::1//", "cannot be parsed", ""),
        (f"amqp://guest:{SECRET}[@h", "'amqp://guest:**@h' cannot be parsed", "as %"),
        (
            f"amqp://u:?{SECRET}=@h",
            "'amqp://u:**@h' has an '@' after the first '?'",
            "%3F",
        ),
        ("redis://h/one", "not the number of a Redis database", "redis://host:6379/0"),
        ("redis://h/-1", "not the number of a Redis database", ""),
        ("rediss://h?ssl_cert_reqs=some", "unknown 'ssl_cert_reqs'", "required, optional, none"),
        ("redis://h?socket_timeout=5", "query parameter 'socket_timeout'", "TRANSPORT_OPTIONS"),
        ("amqp://h//?heartbeat=5", "query parameter 'heartbeat'", "the setting HEARTBEAT"),
        ("amqp://h//?connect_timeout=5", "'connect_timeout'", "the setting CONNECT_TIMEOUT"),
        (f"amqp://h//?password={SECRET}", "'amqp://h//?password=**' has the unknown query", ""),
        (
            ["amqp://a", "redis://b"],
            "cannot mix the transports 'amqp', 'redis'",
            "alias of its own",
        ),
        (["redis://a", "sentinel://b"], "cannot mix the transports 'redis', 'sentinel'", ""),
        (["sqla+sqlite:///a", "sqla+sqlite:///b"], "with '+' in its transport", ""),
    ],
)
def test_a_wrong_url_is_reported_with_a_remedy(url: object, message: str, hint: str) -> None:
    problem = the_problem(URL=url)
    assert problem.key == "URL"
    assert message in problem.message
    assert hint in problem.hint
    assert SECRET not in str(problem)


WHOLE = ["LIMIT", "MIN_IDLE", "MAX_WAITING"]
NULLABLE = ["ACQUIRE_TIMEOUT", "IDLE_TIMEOUT", "MAX_LIFETIME", "LEAK_AFTER"]
SECONDS = [*NULLABLE, "CONNECT_TIMEOUT", "CHECK_AFTER", "CONFIRM_TIMEOUT", "HEARTBEAT"]


@pytest.mark.parametrize("key", [*WHOLE, *SECONDS])
@pytest.mark.parametrize(
    "value", [True, False, -1, math.nan, math.inf, -math.inf, "5", [], 10**400]
)
def test_a_wrong_number_is_reported(key: str, value: Any) -> None:
    if key in WHOLE and value == 10**400:
        value = -value
    problem = the_problem(**{key: value})
    assert problem.key == key
    assert problem.message.startswith("expected ")
    assert f"got {describe(value)}" in problem.message


@pytest.mark.parametrize("key", WHOLE)
@pytest.mark.parametrize("value", [5.0, 0.5])
def test_a_fraction_is_not_a_whole_number(key: str, value: float) -> None:
    assert f"got {value}" in the_problem(**{key: value}).message


@pytest.mark.parametrize(
    "key", ["MIN_IDLE", "CONNECT_TIMEOUT", "CHECK_AFTER", "CONFIRM_TIMEOUT", "HEARTBEAT"]
)
def test_none_is_refused_where_it_has_no_meaning(key: str) -> None:
    assert "got None" in the_problem(**{key: None}).message


@pytest.mark.parametrize(
    "key", ["CONNECT_TIMEOUT", "IDLE_TIMEOUT", "MAX_LIFETIME", "LEAK_AFTER", "CONFIRM_TIMEOUT"]
)
def test_zero_is_refused_where_it_could_mean_two_things(key: str) -> None:
    assert "seconds above 0" in the_problem(**{key: 0}).message


@pytest.mark.parametrize(
    "key, value, message, hint",
    [
        ("LIMIT", "5", "got '5'", "must be converted first"),
        ("ACQUIRE_TIMEOUT", math.inf, "got inf", "write None"),
        ("HEARTBEAT", 1.5, "a whole number of seconds", ""),
        ("HEARTBEAT", 65536, "up to 65535", ""),
        ("IDLE_TIMEOUT", 1e10, "at most 9223372036 seconds", ""),
        ("CONFIRM", 1, "expected True or False, got 1", ""),
        ("MANDATORY", None, "expected True, False or 'default_exchange', got None", ""),
        ("MANDATORY", 1, "expected True, False or 'default_exchange', got 1", ""),
        ("MANDATORY", "default", "expected True, False or 'default_exchange', got 'default'", ""),
        ("CONFIRM", None, "expected True or False, got None", ""),
        ("CONFIRM", NotImplemented, "expected True or False, got ", ""),  # it has no truth value
        ("RETRY", True, "expected a dict of max_retries, interval_start", ""),
        ("RETRY", False, "expected a dict of max_retries", "None turns it off"),
        ("RETRY", [3], "or None (off), got a list", ""),
        ("RETRY", {"max_retry": 1}, "'max_retry' is not part of it", "did you mean 'max_retries'?"),
        ("RETRY", {"MAX_RETRIES": 1}, "'MAX_RETRIES' is not part", "did you mean 'max_retries'?"),
        ("RETRY", {5: 1}, "5 is not part of it", ""),
        ("RETRY", {"max_retries": -1}, "max_retries: expected a whole number from 0, got -1", ""),
        ("RETRY", {"max_retries": None}, "max_retries: expected a whole number", ""),
        ("RETRY", {"interval_max": True}, "interval_max: expected a number of seconds", ""),
        ("RETRY", {"nacked": "no"}, "nacked: expected True or False", ""),
        ("SSL", None, "expected True, False or a dict", ""),
        ("SSL", 1, "a value of type int", ""),
        ("SSL", SECRET, "a value of type str", ""),
        ("SSL", {1: 2}, "names of type str in it, got 1", ""),
        ("TRANSPORT_OPTIONS", None, "expected a dict, got a value of type NoneType", ""),
        ("TRANSPORT_OPTIONS", [SECRET], "a value of type list", ""),
        ("TRANSPORT_OPTIONS", {None: SECRET}, "names of type str in it, got None", ""),
        ("SERIALIZER", "jsn", "got 'jsn'", "did you mean 'json'?"),
        ("SERIALIZER", "", "got ''", "known: json"),
        ("SERIALIZER", "zzzz", "got 'zzzz'", "known: json"),
        ("SERIALIZER", ["json"], "got a list", ""),
        ("COMPRESSION", "gzp", "got 'gzp'", "did you mean 'gzip'?"),
        ("COMPRESSION", {}, "got a dict", ""),
        ("CONNECTION_NAME", "", "got ''", ""),
        ("CONNECTION_NAME", "a\nb", r"got 'a\nb'", ""),
        ("CONNECTION_NAME", 5, "got 5", ""),
    ],
)
def test_a_wrong_value_is_reported_with_a_hint(
    key: str, value: Any, message: str, hint: str
) -> None:
    problem = the_problem(**{key: value})
    assert problem.key == key
    assert message in problem.message
    assert hint in problem.hint


def test_a_codec_whose_package_is_missing_is_reported_with_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(kombu.serialization.registry._encoders, "msgpack", raising=False)
    assert the_problem(SERIALIZER="msgpack").hint == 'pip install "kombu[msgpack]"'
    monkeypatch.delitem(kombu.compression._aliases, "zstd", raising=False)
    assert the_problem(COMPRESSION="zstd").hint == 'pip install "kombu[zstd]"'


def test_a_limit_below_min_idle_is_reported() -> None:
    problem = the_problem(LIMIT=2, MIN_IDLE=3)
    assert (problem.key, problem.message) == ("LIMIT", "2 is below MIN_IDLE (3)")


def test_a_connection_name_that_redis_does_not_take_is_reported() -> None:
    assert PoolSettings.of(url=AMQP, connection_name="web 1 é").connection_name == "web 1 é"
    for name in ("web 1", "é"):
        problem = the_problem(URL="redis://h", CONNECTION_NAME=name)
        assert (problem.key, problem.hint) == ("CONNECTION_NAME", "write it with dashes")


def test_options_that_contain_themselves_are_reported() -> None:
    options: dict[str, Any] = {}
    options["again"] = [options]
    assert "deeper than 20 levels" in the_problem(TRANSPORT_OPTIONS=options).message


def test_all_problems_are_reported_at_once_and_in_order() -> None:
    given = {
        "b": {"LIMT": 5, "LIMIT": True},
        "a": {"URL": "ampq://h", "CONFIRM": "yes"},
        "c": AMQP,
        "d": 5,
    }
    with pytest.raises(SettingsError) as caught:
        parse_settings(given, name="THE_POOLS")
    assert str(caught.value).splitlines() == [
        "THE_POOLS['a']['CONFIRM']: expected True or False, got 'yes'; did you mean True? text, of an environment "
        "variable for instance, must be converted first",
        "THE_POOLS['a']['URL']: 'ampq://h' has the unknown transport 'ampq'; did you mean 'amqp'?",
        "THE_POOLS['b']['LIMIT']: expected a whole number above 0, or None (unlimited), got True",
        "THE_POOLS['b']['LIMT']: 'LIMT' is not a setting; did you mean 'LIMIT'?",
        f"THE_POOLS['b']['URL']: missing; {EXAMPLE}",
        "THE_POOLS['d']: expected a URL or a dict of settings, got 5",
    ]


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: PoolSettings.of(), f"url: missing; {EXAMPLE}"),
        (
            lambda: PoolSettings.of(url=AMQP, limt=5),
            "limt: 'limt' is not a setting; did you mean 'limit'?",
        ),
        (
            lambda: PoolSettings.of(url=AMQP, limit=1, min_idle=2),
            "limit: 1 is below min_idle (2); raise the one or lower the other",
        ),
        (lambda: PoolSettings(url=(AMQP,), confirm=3), "confirm: expected True or False, got 3"),  # type: ignore[arg-type]
        (
            lambda: RetryPolicy(max_retries=-1),
            "max_retries: expected a whole number from 0, got -1",
        ),
    ],
)
def test_wrong_keywords_are_reported(make: Callable[[], object], text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make()
    assert str(caught.value) == text


def test_the_error_survives_pickling() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"default": {"LIMIT": -1}})
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.problems) == (str(caught.value), caught.value.problems)


# -- the connection ----------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> str:
    """Return the path of a file. Its content does not matter."""
    path = tmp_path / "ca.pem"
    path.touch()
    return str(path)


def test_a_connection_has_all_that_was_set(authority: str) -> None:
    settings = PoolSettings.of(
        url="amqp://guest:guest@h:5673/v",
        heartbeat=30,
        connect_timeout=2,
        ssl={"ca_certs": authority},
        connection_name="web",
        transport_options={"frame_max": 4096},
    )
    connection = settings.connection()
    assert not connection.connected
    assert (connection.hostname, connection.port, connection.virtual_host) == ("h", 5673, "v")
    assert (connection.heartbeat, connection.connect_timeout) == (30, 2)
    assert connection.ssl == {"ca_certs": authority}
    assert connection.transport_options == {
        "frame_max": 4096,
        "confirm_publish": True,
        "client_properties": {"connection_name": "web"},
    }
    assert connection.alt == []


def test_transport_options_override_other_settings() -> None:
    options: dict[str, Any] = {
        "confirm_publish": False,
        "client_properties": {"connection_name": "mine", "product": "shop"},
    }
    amqp = PoolSettings.of(url=AMQP, connection_name="web", transport_options=options)
    assert amqp.connection().transport_options == options
    options = {"client_name": "mine", "socket_connect_timeout": 1}
    redis = PoolSettings.of(url="redis://h", connection_name="web", transport_options=options)
    assert redis.connection().transport_options == options


def test_a_connection_name_joins_other_properties() -> None:
    options = {"client_properties": {"product": "shop"}}
    settings = PoolSettings.of(
        url=AMQP, confirm=False, connection_name="web", transport_options=options
    )
    assert settings.connection().transport_options == {
        "client_properties": {"product": "shop", "connection_name": "web"}
    }
    odd = PoolSettings.of(
        url=AMQP,
        confirm=False,
        connection_name="web",
        transport_options={"client_properties": None},
    )
    assert odd.connection().transport_options == {"client_properties": None}


@pytest.mark.parametrize("url", ["redis://h", "rediss://h", "sentinel://h"])
def test_redis_gets_its_own_options(url: str) -> None:
    settings = PoolSettings.of(url=url, ssl=True, connect_timeout=3, connection_name="web")
    connection = settings.connection()
    assert connection.transport_options == {"socket_connect_timeout": 3, "client_name": "web"}
    # kombu takes no `True` here: it would speak in the clear.
    assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert "client_name" not in PoolSettings.of(url=url).connection().transport_options


def test_other_transports_get_no_options() -> None:
    settings = PoolSettings.of(url="memory://", connection_name="web", heartbeat=5)
    assert settings.connection().transport_options == {}


def test_connections_share_nothing() -> None:
    context = ssl.create_default_context()
    nested: dict[str, Any] = {"list": [{"a": 1}], "set": {1}, "tuple": ([2],), "context": context}
    settings = PoolSettings.of(url=AMQP, ssl={"server_hostname": None}, transport_options=nested)
    nested["list"][0]["a"] = 2
    first = settings.connection()
    first.ssl["server_hostname"] = "h"
    first.transport_options["list"][0]["a"] = 3
    first.transport_options["tuple"][0].append(3)
    first.transport_options["set"].clear()
    second = settings.connection()
    assert second.ssl == {"server_hostname": None}
    assert second.transport_options["list"] == [{"a": 1}]
    assert second.transport_options["tuple"] == ([2],)
    assert second.transport_options["set"] == {1}
    assert second.transport_options["context"] is context


def brokers_of(connection: kombu.Connection) -> list[tuple[str, int, str]]:
    seen = []
    for _ in range(2 * len(connection.alt)):
        seen.append((connection.hostname, connection.port, connection.virtual_host))
        connection.maybe_switch_next()
    return seen


def test_failover_does_not_keep_port_or_path_of_the_broker_before() -> None:
    settings = PoolSettings.of(
        url=["amqp://a:5673/shop", "amqp://b:", "amqps://u:p@c/?ssl_x=1", "amqp://[::1]"]
    )
    expected = [("a", 5673, "shop"), ("b", 5672, "/"), ("c", 5671, "/"), ("::1", 5672, "/")]
    assert brokers_of(settings.connection()) == expected * 2


@pytest.mark.xfail(strict=True, reason="kombu switches with the port and path of the broker before")
def test_kombus_failover_does_not_keep_port_or_path_of_the_broker_before() -> None:
    connection = kombu.Connection(["amqp://a:5673/shop", "amqp://b"])
    connection.maybe_switch_next()
    assert (connection.port, connection.virtual_host) != (5673, "shop")


def test_failover_of_redis_and_with_tls() -> None:
    redis = PoolSettings.of(url=["redis://a:1/2", "redis://b"]).connection()
    assert brokers_of(redis) == [("a", 1, "2"), ("b", 6379, "0")] * 2
    tls = PoolSettings.of(url=["amqp://a", "amqp://b"], ssl=True).connection()
    assert [port for _, port, _ in brokers_of(tls)] == [5671] * 4


def test_failover_of_other_transports_is_kombus() -> None:
    urls = ["consul://a", "consul://b"]
    assert [broker_urls.with_defaults(url, tls=False) for url in urls] == urls


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, options, message, hint",
    [
        (AMQP, {"ca_cert": "/x"}, "'ca_cert' is not a TLS option here", "did you mean 'ca_certs'?"),
        (AMQP, {"ssl_ca_certs": "/x"}, "'ssl_ca_certs' is not a TLS option", "'ca_certs'"),
        (
            "redis://h",
            {"cert_reqs": ssl.CERT_NONE},
            "'cert_reqs' is not a TLS option",
            "'ssl_cert_reqs'",
        ),
        (
            AMQP,
            {f"amqp://u:{SECRET}@h": 1},
            "'amqp://u:**@h' is not a TLS option",
            "known: ca_certs",
        ),
        (
            AMQP,
            {"ca_certs": "/no/such/file"},
            "is not the path of a file: '/no/such/file'",
            "working directory",
        ),
        (AMQP, {"ca_certs": "/no\0such"}, "is not the path of a file", ""),
        (AMQP, {"ca_certs": 5}, "expected the path of a file for 'ca_certs', got 5", ""),
        ("redis://h", {"ssl_certfile": "/no"}, "'ssl_certfile' is not the path of a file", ""),
        (AMQP, {"keyfile": __file__}, "'keyfile' is given without 'certfile'", "its certificate"),
        (
            AMQP,
            {"cert_reqs": "required"},
            "expected ssl.CERT_REQUIRED",
            "did you mean ssl.CERT_REQUIRED?",
        ),
        (
            "redis://h",
            {"ssl_cert_reqs": "requird"},
            "expected ssl.CERT",
            "did you mean 'required'?",
        ),
        ("redis://h", {"ssl_cert_reqs": 7}, "expected ssl.CERT_REQUIRED", ""),
        (
            AMQP,
            {"check_hostname": "no"},
            "expected True or False for 'check_hostname'",
            "did you mean False?",
        ),
        (
            "redis://h",
            {"ssl_check_hostname": "true"},
            "expected True or False",
            "did you mean True?",
        ),
        (AMQP, {"check_hostname": True, "cert_reqs": ssl.CERT_NONE}, "has no effect", "remove one"),
        (
            "redis://h",
            {"ssl_check_hostname": True, "ssl_cert_reqs": "none"},
            "has no effect",
            "remove one",
        ),
        (AMQP, {"server_hostname": ""}, "expected a name or None for 'server_hostname'", ""),
        (AMQP, {"context": 1}, "expected a dict of the arguments of ssl.create_default", ""),
        (
            AMQP,
            {"context": {"cafil": "/x"}},
            "'cafil' is not an argument of ssl.create_default_context",
            "'cafile'",
        ),
        (AMQP, {"context": {1: 2}}, "1 is not an argument of ssl.create_default_context", ""),
        (
            "rediss://h?ssl_cert_reqs=required",
            {"ssl_ciphers": "HIGH"},
            "the URL has TLS options as well",
            "write all of them here",
        ),
    ],
)
def test_wrong_tls_options_are_reported(url: str, options: Any, message: str, hint: str) -> None:
    (problem,) = problems_of({"default": {"URL": url, "SSL": options}})
    assert (problem.alias, problem.key) == ("default", "SSL")
    assert message in problem.message
    assert hint in problem.hint


def test_valid_tls_options_are_accepted() -> None:
    for url, options in [
        (AMQP, {"ca_certs": __file__, "certfile": Path(__file__), "keyfile": __file__}),
        (AMQP, {"cert_reqs": ssl.CERT_NONE, "check_hostname": False}),
        (AMQP, {"context": {"cafile": __file__}, "server_hostname": "h"}),
        ("redis://h", {"ssl_cert_reqs": "none", "ssl_check_hostname": False}),
        ("rediss://h", {"ssl_cert_reqs": None, "ssl_ca_certs": __file__}),
        ("consul://h", {"what": "ever"}),
    ]:
        assert PoolSettings.of(url=url, ssl=options).ssl == options


def test_tls_options_match_those_of_the_drivers() -> None:
    amqp = inspect.signature(SSLTransport._wrap_socket_sni).parameters
    newer = {"tls_maximum_version", "tls_minimum_version"}
    assert {*amqp} - {"self", "sock"} | newer == {*AMQP_OPTIONS} - {"check_hostname", "context"}
    redis = inspect.signature(pytest.importorskip("redis").SSLConnection.__init__).parameters
    known = {name for name in redis if name.startswith("ssl_")}
    # What the newest has and older ones do not.
    assert known | {"ssl_include_verify_flags", "ssl_exclude_verify_flags"} == {*REDIS_OPTIONS}


@pytest.mark.parametrize(
    "url, tls",
    [
        ("rediss://h/0", {"ssl_cert_reqs": ssl.CERT_REQUIRED}),
        ("rediss://h/0?login_method=x", {"ssl_cert_reqs": ssl.CERT_REQUIRED}),
        ("rediss://h/0?ssl_cert_reqs=none", {"ssl_cert_reqs": ssl.CERT_NONE}),
        ("rediss://h/0?ssl_ca_certs=/ca.pem", {"ssl_ca_certs": "/ca.pem"}),
        ("redis://h/0", False),
    ],
)
def test_rediss_verifies_the_certificate_unless_it_says_otherwise(url: str, tls: Any) -> None:
    assert PoolSettings.of(url=url).connection().ssl == tls


def test_rediss_in_a_list_verifies_the_certificate() -> None:
    connection = PoolSettings.of(url=["redis://a", "rediss://b"]).connection()
    assert connection.ssl is False
    connection.maybe_switch_next()
    assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}


# -- what is asked of settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, transport, is_amqp, module",
    [
        ("amqp://h", "amqp", True, None),
        ("AMQPS://h", "amqps", True, None),
        ("pyamqp://h", "pyamqp", True, None),
        ("redis://h", "redis", False, "redis"),
        ("redis+socket:///run/redis.sock", "redis", False, "redis"),
        ("sentinel://h", "sentinel", False, "redis"),
        ("memory://", "memory", False, None),
        ("filesystem://", "filesystem", False, None),
        ("sqs://", "sqs", False, "boto3"),
        ("slmq://", "slmq", False, "softlayer_messaging"),
        ("azurestoragequeues://", "azurestoragequeues", False, "azure.storage.queue"),
    ],
)
def test_the_transport_is_that_of_the_first_url(
    url: str, transport: str, is_amqp: bool, module: str | None
) -> None:
    settings = PoolSettings.of(url=url)
    assert settings.transport == transport
    assert settings.is_amqp is is_amqp
    assert settings.required_module == module


def test_every_kombu_transport_is_known() -> None:
    without = {"pyamqp", "memory", "filesystem"}
    for transport in TRANSPORT_ALIASES:
        name = broker_urls.implementation_of(transport)
        assert (broker_urls.driver_of(transport) is None) == (name in without), transport


def test_a_transport_that_is_not_part_of_kombu_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSPORT_ALIASES, "mine", "mypackage.transport:Transport")
    monkeypatch.setitem(TRANSPORT_ALIASES, "made", lambda: "mypackage.transport:Transport")
    for name in ("mine", "made"):
        settings = PoolSettings.of(url=f"{name}://a:b:c?d=e")
        assert not settings.is_amqp
        assert settings.required_module is None
        assert settings.missing_driver() is None


@pytest.mark.parametrize(
    "url, missing",
    [
        ("redis://h", 'pip install "kombu-pools-ext[redis]"'),
        ("azurestoragequeues://h", 'pip install "kombu[azurestoragequeues]"'),
        ("gcpubsub://h", 'pip install "kombu[gcpubsub]"'),
    ],
)
def test_a_missing_driver_is_reported_with_what_to_install(
    url: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PoolSettings.of(url=url)
    monkeypatch.setattr(broker_urls, "find_spec", lambda name: None)
    message = settings.missing_driver()
    assert message is not None
    assert repr(settings.required_module) in message
    assert missing in message


def test_an_installed_driver_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PoolSettings.of(url="redis://h")
    monkeypatch.setitem(sys.modules, "redis", types.ModuleType("redis"))
    sys.modules["redis"].__spec__ = None
    assert settings.missing_driver() is None
    assert PoolSettings.of(url=AMQP).missing_driver() is None


def test_a_driver_within_a_package_is_found_without_importing_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "azure" / "storage" / "queue").mkdir(parents=True)
    for name in ("azure/storage/__init__.py", "azure/storage/queue/__init__.py"):
        (tmp_path / name).write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert PoolSettings.of(url="azurestoragequeues://h").missing_driver() is None
    assert PoolSettings.of(url="azureservicebus://h").missing_driver() is not None


def test_parsing_imports_no_transport_and_opens_nothing() -> None:
    code = """
import socket, sys
from kombu_pools_ext.settings import parse_settings
def refuse(*args, **kwargs):
    raise AssertionError("a socket")
socket.socket = socket.create_connection = refuse
before = set(sys.modules)
for url in ("amqp://h", "redis://h", "sqs://h", "mongodb://h", "sqla+sqlite://"):
    parse_settings({"default": {"URL": url, "MIN_IDLE": 2}})["default"].missing_driver()
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- identity ----------------------------------------------------------------------------------------------------------

BASE = PoolSettings.of(url=AMQP, limit=5)


@pytest.mark.parametrize(
    "change",
    [
        {"acquire_timeout": 9},
        {"retry": None},
        {"serializer": "pickle"},
        {"compression": "gzip"},
        {"ssl": {}},
        {"ssl": {"context": {"cadata": "a"}}},
    ],
    ids=str,
)
def test_settings_that_differ_only_for_the_caller_share_a_pool(change: dict[str, Any]) -> None:
    first = PoolSettings.of(url=AMQP, limit=5, ssl=change.get("ssl", False))
    second = PoolSettings.of(url=AMQP, limit=5, **change)
    assert first.identity == second.identity
    assert hash(first.identity) == hash(second.identity)


@pytest.mark.parametrize(
    "change",
    [
        {"url": "amqp://other"},
        {"url": [AMQP, AMQP]},
        {"limit": 6},
        {"limit": None},
        {"limit": use_global_limit},
        {"min_idle": 1},
        {"max_waiting": 1},
        {"connect_timeout": 1},
        {"idle_timeout": 1},
        {"max_lifetime": 1},
        {"check_after": 1},
        {"heartbeat": 1},
        {"confirm": False},
        {"confirm_timeout": 1},
        {"leak_after": 1},
        {"ssl": True},
        {"ssl": {"ciphers": "HIGH"}},
        {"transport_options": {"a": 1}},
        {"connection_name": "web"},
    ],
    ids=str,
)
def test_settings_that_concern_connections_need_another_pool(change: dict[str, Any]) -> None:
    assert dataclasses.replace(BASE, **change).identity != BASE.identity


def test_identity_of_options() -> None:
    def identity(**options: Any) -> object:
        return PoolSettings.of(url=AMQP, transport_options=options).identity

    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

    one, other, context = Unhashable(), Unhashable(), ssl.create_default_context()
    assert identity(a=[1, {"b": 2}], c={3}) == identity(c={3}, a=[1, {"b": 2}])
    assert identity(a=context) == identity(a=context)
    assert identity(a=one) == identity(a=one)
    assert (
        len(
            {identity(a=value) for value in (1, 1.0, True, "1", [1], (1,), {1}, {1: 1}, one, other)}
        )
        == 10
    )


def test_identity_is_computed_once_and_shows_nothing() -> None:
    settings = PoolSettings.of(url=f"amqp://guest:{SECRET}@h", ssl={"ciphers": SECRET})
    assert settings.identity is settings.identity
    assert SECRET not in repr([settings.identity])


def test_settings_survive_pickling() -> None:
    settings = PoolSettings.of(
        url=AMQP, limit=None, ssl={"context": {"cadata": "a"}}, retry={"max_retries": 1}
    )
    again = pickle.loads(pickle.dumps(settings))
    assert again == settings
    assert again.identity == settings.identity


# -- secrets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, masked",
    [
        ("amqp://guest:pw@h:5672//", "amqp://guest:**@h:5672//"),
        ("amqp://h:5672/v", "amqp://h:5672/v"),
        ("amqp://guest@h", "amqp://guest@h"),
        ("redis://:pw@h/0", "redis://:**@h/0"),
        ("redis://h/0?password=pw&a=b", "redis://h/0?password=**&a=b"),
        ("redis://h/0?a=b&Api_Token=pw", "redis://h/0?a=b&Api_Token=**"),
        ("amqp://a:pw@h;amqp://b:pw@i", "amqp://a:**@h;amqp://b:**@i"),
        ("amqp://a:p;w@h", "amqp://a:**@h"),
        ("amqp://a:1;w@h", "amqp://a:**@h"),
        ("amqp://a:p@w@h", "amqp://a:**@h"),
        ("amqp://a:p/w@h", "amqp://a:**@h"),
        ("amqp://a:p?w#@h", "amqp://a:**@h"),
        ("amqp://a:pw/h", "amqp://a:**"),
        ("amqp://a:/pw", "amqp://a:**"),
        ("amqp://a:b@[::1]:5672/", "amqp://a:**@[::1]:5672/"),
        ("amqp://[::1]:pw/", "amqp://[::1]:**"),
        ("azurestoragequeues://key@host", "azurestoragequeues://**@host"),
        ("redis://pw@h/0", "redis://**@h/0"),
        ("sqs://key:pw@", "sqs://key:**@"),
        ("sqla+postgresql://a:pw@h/b", "sqla+postgresql://a:**@h/b"),
        ("ampq://a:pw@h", "ampq://**:**@h"),
        ("a:pw@h", "**"),
        ("a:pw@amqp://h", "**"),
        ("", "**"),
    ],
)
def test_passwords_in_urls_are_masked(url: str, masked: str) -> None:
    assert mask_url(url) == masked
    assert mask_url(masked) == masked


def test_the_uri_shows_no_password() -> None:
    settings = PoolSettings.of(url=[f"redis://a:{SECRET}@h:6379/0", f"redis://:{SECRET}@i"])
    assert settings.uri == "redis://a:**@h:6379/0;redis://:**@i"


def test_repr_shows_what_differs_from_the_defaults_without_secrets() -> None:
    context = ssl.create_default_context()
    settings = PoolSettings.of(
        url=f"amqp://guest:{SECRET}@h",
        limit=None,
        retry={"max_retries": 0},
        ssl={"ciphers": "HIGH"},
        transport_options={
            "a": [{"token": SECRET}, (1, f"redis://:{SECRET}@h")],
            "keyfile_password": SECRET,
            "context": context,
        },
    )
    assert repr(settings) == (
        "PoolSettings('amqp://guest:**@h', limit=None, retry=RetryPolicy(max_retries=0, interval_start=0.0, "
        "interval_step=0.2, interval_max=1.0, nacked=True), ssl={'ciphers': 'HIGH'}, transport_options="
        "{'a': [{'token': **}, [1, 'redis://:**@h']], 'keyfile_password': **, 'context': <SSLContext>})"
    )
    assert repr(PoolSettings.of(url="memory://")) == "PoolSettings('memory://')"
    assert repr(PoolSettings.of(url="memory://", limit=5)) == "PoolSettings('memory://', limit=5)"


def test_a_message_quotes_only_the_beginning_of_a_long_value() -> None:
    assert describe("x" * 1000) == f"'{'x' * 79}…"
    assert describe(10**5000) == "an int of 16610 bits"
    assert describe(b"x") == "a bytes"
    deep: dict[str, Any] = {"a": [[[[[1]]]]]}
    assert show(deep) == "{'a': [[[[[…]]]]]}"
    assert show([[[[[{}]]]]]) == "[[[[[{…}]]]]]"


# Whatever somebody may forget to escape in a password, but what starts another URL.
junk = st.text("ab1@/:;?#%[]&=+ é\n", max_size=4).filter(lambda text: "://" not in text)
urls = st.builds(
    lambda scheme, user, before, after, end: f"{scheme}{user}:{before}{SECRET}{after}@{end}",
    st.sampled_from(
        ["amqp://", "redis://", "rediss://", "memory://", "sqla+x://", "ampq://", "", "a b://"]
    ),
    st.sampled_from(["guest", "", "é"]),
    junk,
    junk,
    st.sampled_from(["h", "h:5672//", "h:1/0?a=b", "[::1]", ""]),
) | st.sampled_from(
    [
        f"redis://h/0?password={SECRET}",
        f"amqp://guest:{SECRET}",
        f"amqp://guest:{SECRET}/vhost",
        f"amqp://guest:{SECRET}@a;amqp://guest:{SECRET}@b",
    ]
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | urls
secrets = st.dictionaries(
    st.sampled_from(["password", "keyfile_password", "API_KEY", "sasl.password", "access_token"]),
    st.just(SECRET) | st.lists(st.just(SECRET), max_size=2),
    max_size=2,
)
keys = st.text(max_size=5) | urls
trees = st.recursive(
    leaves | secrets,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
NAMES = [field.name for field in dataclasses.fields(PoolSettings) if field.init]
pools_like = st.fixed_dictionaries(
    {},
    optional={
        **{name.upper(): trees for name in NAMES},
        **dict.fromkeys(["LIMT", "url", "Url"], trees),
        "URL": urls | st.lists(urls, max_size=2) | st.just(AMQP),
        "SSL": secrets | st.dictionaries(keys, trees, max_size=2),
        "TRANSPORT_OPTIONS": secrets | st.dictionaries(keys, trees, max_size=2),
    },
)
good = st.fixed_dictionaries(
    {
        "url": st.sampled_from(
            [f"amqp://u:{SECRET}@h", f"redis://:{SECRET}@h/0;redis://h2", f"memory://a:{SECRET}@h"]
        )
    },
    optional={
        "limit": st.none() | st.integers(1, 9),
        "ssl": st.booleans() | st.fixed_dictionaries({}),
        "transport_options": secrets | st.dictionaries(keys, trees, max_size=2),
    },
)


@given(trees | st.dictionaries(keys, trees | pools_like | good, max_size=3))
@example(
    {"default": {"URL": f"amqp://u:{SECRET}@h", "TRANSPORT_OPTIONS": {"login_response": SECRET}}}
)
@example({f"amqp://u:{SECRET}@h": {f"amqp://u:{SECRET}@h": 1}})
def test_any_input_gives_settings_or_the_error_and_no_secret(value: Any) -> None:
    parsed: dict[str, PoolSettings] = {}
    shown = []
    try:
        parsed = parse_settings(value)
    except SettingsError as caught:
        error: SettingsError | None = caught
    else:
        error = None
    if error:
        assert error.problems
        assert len(str(error).splitlines()) == len(error.problems)
        assert error.__context__ is None
        shown = [str(error), repr(error), repr(error.problems), repr(error.args)]
    else:
        shown = [repr(parsed), *(one.uri for one in parsed.values())]
        for one in parsed.values():
            shown += [
                repr(one),
                str(one),
                repr(one.identity),
                repr(one.options),
                repr(one.missing_driver()),
            ]
            hash((one, one.identity))
    assert SECRET not in "\n".join(shown)


@given(good)
def test_accepted_settings_make_connections(value: dict[str, Any]) -> None:
    settings = PoolSettings.of(**value)
    connection = settings.connection()
    assert not connection.connected
    assert SECRET not in repr(settings)


accepted_urls = st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(["amqp", "amqps", "pyamqp", "redis", "memory", "filesystem"]),
    st.text("ab1@/:?#%[].-=&", max_size=6),
    st.sampled_from(["", ":5672", ":x", "@h", "h"]),
    st.sampled_from(["", "/", "//", "/0", "/v?ssl_a=b", "?c=d", "/?login_method=EXTERNAL"]),
)


@given(accepted_urls)
def test_kombu_reads_every_url_that_is_accepted(url: str) -> None:
    try:
        settings = PoolSettings.of(url=[url, url])
    except SettingsError:
        return
    connection = settings.connection()
    for one in connection.alt:
        assert parse_url(one)["hostname"] == parse_url(url)["hostname"]
    connection.maybe_switch_next()


@pytest.mark.parametrize("host", ["][::", "[::1", "::1]", "[::1]x", "[]"])
def test_stray_brackets_in_a_host_are_refused(host: str) -> None:
    with pytest.raises(SettingsError, match=r"brackets|cannot be parsed|port"):
        PoolSettings.of(url=f"amqp://{host}")


def test_an_ipv6_address_in_brackets_is_a_host() -> None:
    assert PoolSettings.of(url="amqp://[::1]:5672//").connection().port == 5672


# -- what stands in the wrong place ------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [{}, types.MappingProxyType({})])
def test_a_dict_without_aliases_is_reported(empty: Any) -> None:
    (problem,) = problems_of(empty)
    assert problem.message == "the dict of aliases is empty"
    assert problem.hint == 'write {"default": {"URL": "amqp://localhost//"}}'
    with pytest.raises(SettingsError, match="is empty"):
        Pools(empty)
    with pytest.raises(SettingsError, match="is empty"):
        configure(empty)


def test_pools_without_settings_are_valid_before_and_after_a_reload() -> None:
    pools = Pools()
    assert pools.settings == {}
    pools.reload()
    assert pools.settings == {}


@pytest.mark.parametrize(
    "given, shown",
    [
        ({"URL": AMQP}, "'URL' is a setting"),
        ({"url": AMQP, "limit": 3}, "'url', 'limit' are settings"),
        ({"URL": [AMQP], "SSL": {"cafile": SECRET}}, "'URL', 'SSL' are settings"),
        ({"URL": AMQP, "RETRY": {"max_retries": 1}}, "'URL', 'RETRY' are settings"),
        ({"HOST": "mq", "PASSWORD": SECRET}, "'HOST', 'PASSWORD' are settings"),
        ({"URL": AMQP, "RETRY": None, "CONFIRM": False}, "'URL', 'RETRY', 'CONFIRM' are settings"),
    ],
)
def test_settings_without_an_alias_are_reported(given: Any, shown: str) -> None:
    (problem,) = problems_of(given)
    assert problem.message == f"{shown} of a pool, and not the name of one"
    first = next(iter(given))
    assert problem.hint == f'write {{"default": {{{first!r}: …}}}}'


def test_a_url_in_place_of_the_dict_is_reported_with_its_place() -> None:
    (problem,) = problems_of(f"amqp://guest:{SECRET}@localhost//")
    assert problem.hint == 'write {"default": …}'
    (problem,) = problems_of(f'{{"default": "amqp://guest:{SECRET}@localhost//"}}')
    assert problem.hint.endswith("json.loads() makes a dict of it")
    assert SECRET not in str(problem)


def test_settings_beside_an_alias_are_reported_with_the_problems_of_the_alias() -> None:
    misplaced, typo = problems_of({"default": {"URL": AMQP, "LIMT": 3}, "LIMIT": 5})
    assert (misplaced.alias, typo.key) == (None, "LIMT")
    assert misplaced.message.startswith("'LIMIT' is a setting of a pool")


def test_a_pool_may_be_called_as_a_setting_is() -> None:
    pools = parse_settings({"retry": "memory://retry", "url": {"URL": "memory://url", "LIMIT": 1}})
    assert pools["retry"].url == ("memory://retry",)
    assert pools["url"].limit == 1
    assert set(parse_settings({"limit": pools["url"], "host": {"HOST": "mq"}})) == {"limit", "host"}


@pytest.mark.parametrize(
    "key, text, meant",
    [
        ("CONFIRM", "False", "False"),
        ("CONFIRM", "0", "False"),
        ("CONFIRM", " yes ", "True"),
        ("SSL", "true", "True"),
        ("MANDATORY", "off", "False"),
        ("LIMIT", "5", "5"),
        ("LIMIT", "None", "None"),
        ("HEARTBEAT", "30", "30"),
        ("ACQUIRE_TIMEOUT", "2.5", "2.5"),
        ("LEAK_AFTER", "", "None"),
        ("MIN_IDLE", "1", "1"),
        ("RETRY", "null", "None"),
        ("SERIALIZER", "None", "None"),
        ("COMPRESSION", "none", "None"),
    ],
)
def test_a_text_that_means_another_type_is_reported_with_the_value(
    key: str, text: str, meant: str
) -> None:
    problem = the_problem(**{key: text})
    assert problem.hint == (
        f"did you mean {meant}? text, of an environment variable for instance, must be converted first"
    )


@pytest.mark.parametrize("key", ["SSL", "TRANSPORT_OPTIONS", "RETRY"])
def test_a_text_of_json_is_reported_with_the_way_to_parse_it(key: str) -> None:
    problem = the_problem(**{key: f'{{"password": "{SECRET}"}}'})
    assert problem.hint.endswith("json.loads() makes a dict of it")


def test_a_misspelt_word_is_reported_with_the_right_one() -> None:
    assert the_problem(MANDATORY="default").hint == "did you mean 'default_exchange'?"


# -- names beside the settings -----------------------------------------------------------------------------------------

CONFIGURATION = MisspeltNames(
    "KOMBU_POOLS", {"KOMBU_POOLS_URL": (), "KOMBU_POOLS_CONTROL": ("ENABLED", "DIRECTORY")}
)


@pytest.mark.parametrize(
    "name, setting, place",
    [
        ("KOMBU_POOLS_LIMIT", "KOMBU_POOLS", 'KOMBU_POOLS = {"default": {"LIMIT": …}}'),
        ("KOMBU_POOLS_LIMTI", "KOMBU_POOLS", 'KOMBU_POOLS = {"default": {"LIMIT": …}}'),
        ("KOMBU_POOLS_DEFAULT", "KOMBU_POOLS", 'KOMBU_POOLS = {"default": …}'),
        ("KOMBU_POOLS_DEFAULT_LIMIT", "KOMBU_POOLS", 'KOMBU_POOLS = {"default": {"LIMIT": …}}'),
        ("KOMBU_POOL", "KOMBU_POOLS", "KOMBU_POOLS"),
        ("KOMBUPOOLS", "KOMBU_POOLS", "KOMBU_POOLS"),
        ("KOMBU-POOLS", "KOMBU_POOLS", "KOMBU_POOLS"),
        ("kombu_pools", "KOMBU_POOLS", "KOMBU_POOLS"),
        ("KOMBU_POLLS", "KOMBU_POOLS", "KOMBU_POOLS"),
        ("KOMUB_POOLS", "KOMBU_POOLS", "KOMBU_POOLS"),
        ("KOMBU_POOL_URL", "KOMBU_POOLS_URL", "KOMBU_POOLS_URL"),
        ("KOMBU_POLLS_URL", "KOMBU_POOLS_URL", "KOMBU_POOLS_URL"),
        ("kombu_pools_url", "KOMBU_POOLS_URL", "KOMBU_POOLS_URL"),
        ("KOMBU_POOLS_CONTROLL", "KOMBU_POOLS_CONTROL", "KOMBU_POOLS_CONTROL"),
        ("KOMBU_POOL_CONTROL", "KOMBU_POOLS_CONTROL", "KOMBU_POOLS_CONTROL"),
        (
            "KOMBU_POOLS_CONTROL_DIRECTORY",
            "KOMBU_POOLS_CONTROL",
            'KOMBU_POOLS_CONTROL = {"DIRECTORY": …}',
        ),
    ],
)
def test_a_misspelt_setting_is_reported_with_its_place(name: str, setting: str, place: str) -> None:
    ((near, problem),) = CONFIGURATION.among(["SECRET_KEY", "KOMBU_POOLS_URL", name])
    assert near == setting
    assert problem == Problem(None, None, f"{name!r} is not a setting", f"did you mean {place}?")


def test_a_name_that_resembles_no_setting_is_reported_with_all_of_them() -> None:
    ((near, problem),) = CONFIGURATION.among(["KOMBU_POOLS_XYZZY"])
    assert near == "KOMBU_POOLS"
    assert problem.hint == "known: KOMBU_POOLS, KOMBU_POOLS_URL, KOMBU_POOLS_CONTROL"


@pytest.mark.parametrize(
    "name",
    [
        "KOMBU_POOLS",
        "KOMBU_POOLS_URL",
        "KOMBU_POOLS_CONTROL",
        "SQLALCHEMY_POOL_SIZE",
        "SQLALCHEMY_POOL_TIMEOUT",
        "CELERY_BROKER_POOL_LIMIT",
        "BROKER_POOL_LIMIT",
        "REDIS_CONNECTION_POOL",
        "KOMBU_URL",
        "KOMBU_SERIALIZER",
        "MY_KOMBU_POOLS_VIEW",
        "_KOMBU_POOLS",
        "MY_KOMBU_POOLS",
        "DATABASE_POOLS_CONTROL",
        "pool",
        5,
        None,
        ("KOMBU_POOL",),
    ],
)
def test_right_names_and_names_of_others_are_not_reported(name: Any) -> None:
    assert list(CONFIGURATION.among([name])) == []


@given(st.text())
def test_no_name_breaks_the_search_for_misspelt_settings(name: str) -> None:
    list(CONFIGURATION.among([name, f"KOMBU_POOLS_{name}", f"KOMBU{name}"]))
