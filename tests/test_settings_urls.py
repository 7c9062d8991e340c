"""A broker URL is read exactly as it is written, or refused before anything connects; no error shows its password."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import quote, unquote

import kombu
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.utils.url import parse_url

from kombu_pools_ext import Pools, connections, producers
from kombu_pools_ext.settings import PoolSettings, SettingsError
from kombu_pools_ext.settings.url_checks import url_problems
from kombu_pools_ext.settings.urls import with_defaults

SECRET = "s3cr3t-Pa55"


def problems_of(url: object) -> list[tuple[str, str]]:
    with pytest.raises(SettingsError) as caught:
        PoolSettings.of(url=url)
    assert caught.value.__cause__ is caught.value.__context__ is None
    return [(one.message, one.hint) for one in caught.value.problems]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"somebody was asked: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


# -- the property ------------------------------------------------------------------------------------------------------

# NUL is refused, and a lone surrogate has no UTF-8.
texts = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    | st.sampled_from("@/:#?%[];&=+, é"),
    min_size=1,
    max_size=8,
)
hosts = st.sampled_from(["localhost", "rabbit_1.internal", "10.0.0.7", "[::1]", "[fe80::1%25eth0]"])
ports = st.sampled_from([5672, 1, 65535])


def read(connection: kombu.Connection) -> tuple[Any, ...]:
    host = connection.hostname
    return connection.userid, connection.password, host, connection.port, connection.virtual_host


@given(st.sampled_from(["amqp", "amqps", "pyamqp", "AMQP"]), texts, texts, hosts, ports, texts)
def test_escaped_text_in_a_url_is_read_back_exactly(
    scheme: str, user: str, password: str, host: str, port: int, vhost: str
) -> None:
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    url = f"{scheme}://{login}@{host}:{port}/{quote(vhost, safe='')}"
    written = user, password, unquote(host.strip("[]")), port, vhost
    assert read(PoolSettings.of(url=url).connection()) == written
    several = PoolSettings.of(url=["amqp://first", url]).connection()
    several.maybe_switch_next()
    assert read(several) == written


@given(texts, texts, hosts, texts)
@example("guest", "p@ss/word", "localhost", "cases")
@example("guest", "p@ss/w#rd", "localhost", "cases")
@example("guest", "a@b?c", "localhost", "cases")
@example("guest", "1/x", "localhost", "cases")
@example("guest", "1?x=y", "localhost", "cases")
@example("guest", "%FF", "localhost", "cases")
def test_unescaped_text_in_a_url_is_refused_or_read_as_written(
    user: str, password: str, host: str, vhost: str
) -> None:
    url = f"amqp://{user}:{password}@{host}:5672/{vhost}"
    if next(url_problems(url), None):
        return
    # Only the first ':' is no part of either of them.
    user, _, password = f"{user}:{password}".partition(":")
    written = unquote(user), unquote(password), unquote(host.strip("[]")), 5672, unquote(vhost)
    assert read(PoolSettings.of(url=url).connection()) == written
    again = parse_url(with_defaults(url, tls=False))
    assert written == tuple(
        again[one] for one in ("userid", "password", "hostname", "port", "virtual_host")
    )


# -- what is refused, and the remedy -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, shown, message, hint",
    [
        (
            f"amqp://guest:{SECRET}@x/y@localhost/cases",
            "amqp://guest:**@localhost/cases",
            "an '@' after the first '/'",
            "write '/' as %2F and '@' as %40; or give HOST, USER and PASSWORD",
        ),
        (
            f"amqp://guest:1/{SECRET}@localhost/cases",
            "amqp://guest:**@localhost/cases",
            "an '@' after the first '/'",
            "write '/' as %2F and '@' as %40",
        ),
        (
            f"amqp://guest:1?{SECRET}@localhost/cases",
            "amqp://guest:**@localhost/cases",
            "an '@' after the first '?'",
            "write '?' as %3F and '@' as %40",
        ),
        (
            f"redis://:a@{SECRET}/b@localhost:6379/2",
            "redis://:**@localhost:6379/2",
            "an '@' after the first '/'",
            "'/' as %2F",
        ),
        (
            f"amqp://guest:#{SECRET}@localhost",
            "amqp://guest:**@localhost",
            "a '#' in it",
            "'#' as %23",
        ),
        ("amqp://localhost/cases#eu", "amqp://localhost/cases#eu", "a '#' in it", "'#' as %23"),
        (
            "amqp://localhost/c@ses",
            "amqp://localhost/c@ses",
            "an '@' after the first '/'",
            "'@' as %40",
        ),
        (
            f"amqp://u:[{SECRET}]@localhost",
            "amqp://u:**@localhost",
            "",
            "write",
        ),
        (
            f"amqp://u:{SECRET}%FF@localhost",
            "amqp://u:**@localhost",
            "escapes that are not UTF-8",
            "%C3%A9",
        ),
        (
            f"amqp://u:{SECRET}%00@localhost",
            "amqp://u:**@localhost",
            "a null character",
            "remove %00",
        ),
        ("amqp://u:@localhost", "amqp://u:**@localhost", "an empty password", "variable"),
        (f"amqp://:{SECRET}@localhost", "amqp://:**@localhost", "an empty user name", "variable"),
        ("amqp://a,b//", "amqp://a,b//", "a ',' in its host", "a list of URLs"),
        ("amqp://a:1,b:2//", "amqp://a:**", "a ',' in its host", "a list of URLs"),
        (
            f"amqp://u:{SECRET}@a//,amqp://u:{SECRET}@b//",
            "amqp://u:**@b//",
            "a ',' between two URLs",
            "a list of URLs",
        ),
        ("redis://a/0, redis://b/0", "redis://a/0, redis://b/0", "a ',' between two URLs", ""),
        ("amqp://a%2Fb", "amqp://a%2Fb", "a host that is neither a name nor an address", ""),
        ("amqp://a$b", "amqp://a$b", "a host that is neither a name nor an address", ""),
        ("amqp://::1//", "amqp://:**", "a port that is not a number", "[::1]:5672"),
        ("amqp://[a]//", "amqp://[a]//", "", "write"),
        ("amqp://h//?login_method", "", "without a name or a value", "?name=value"),
        ("amqp://h//?login_method=", "", "without a name or a value", ""),
        ("amqp://h//?login_method=A&login_method=B", "", "a query parameter twice", ""),
        ("rediss://h/0?ssl_ca_certs=/a+b", "", "a '+' in its query", "%2B"),
        ("rediss://h/0?ssl_ca_certs=/%FF", "", "escapes that are not UTF-8", ""),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_a_url_that_kombu_would_misread_is_refused(
    url: str, shown: str, message: str, hint: str
) -> None:
    ((told, remedy),) = problems_of(url)
    assert told.startswith(f"'{shown}")
    assert message in told
    assert hint in remedy
    assert SECRET not in told + remedy
    for ask in (
        lambda: Pools(default=url),
        lambda: Pools(default={"url": ["amqp://h", url]}),
        lambda: connections[url],
        lambda: producers[url],
        lambda: Pools().connections[url],
    ):
        with pytest.raises(SettingsError) as caught:
            ask()
        assert message in str(caught.value)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "scheme, remedy",
    [
        ("redis+sentinel", "write sentinel://"),
        ("redis+cluster", "kombu does not support Redis Cluster"),
        ("redis+tls", "write rediss://"),
        ("redis+ssl", "write rediss://"),
        ("redis+anything", "write redis:// or rediss://; for a Unix socket"),
        ("rediss+socket", "write redis:// or rediss://; for a Unix socket"),
        ("sentinel+ssl", "write redis:// or rediss://"),
        ("amqp+tls", "write amqps://"),
        ("amqp+ssl", "write amqps://"),
        ("amqps+x", "write amqps://"),
        ("memory+x", "write memory://"),
        ("filesystem+x", "write filesystem://"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_a_scheme_with_a_plus_that_kombu_misreads_is_refused(scheme: str, remedy: str) -> None:
    url = f"{scheme}://u:{SECRET}@prod.example:1234/0"
    ((told, hint),) = problems_of(url)
    assert f"has the scheme {scheme!r}, with which kombu would connect to another host" in told
    assert remedy in hint
    assert SECRET not in told
    with pytest.raises(SettingsError, match="with which kombu would connect to another host"):
        connections[kombu.Connection(url)]
    with pytest.raises(SettingsError, match="with which kombu would connect to another host"):
        connections[kombu.Connection(["amqp://a", url])]


@pytest.mark.parametrize(
    "url",
    [
        "redis+socket:///run/redis.sock",
        "redis+socket://:pw@/run/redis.sock?virtual_host=3",
        "sqla+postgresql://u:p@h/queues",
        "mongodb+srv://u:p@cluster.example/queues",
    ],
)
def test_a_scheme_with_a_plus_that_kombu_understands_is_accepted(url: str) -> None:
    assert PoolSettings.of(url=url).url == (url,)


@pytest.mark.parametrize(
    "url, message",
    [
        ("redis+socket://run/redis.sock", "the path of a socket, after three slashes"),
        ("redis+socket://", "the path of a socket"),
        ("redis+socket:///s?db=3", "unknown query parameter 'db'"),
        ("redis+socket:///s?virtual_host=x", "not the number of a database"),
        ("redis+socket:///s?virtual_host", "without a name or a value"),
        (f"redis+socket://:{SECRET}/x@/s", "an '@' after the first '/'"),
        (f"redis+socket://:{SECRET}[@/s", "cannot be parsed"),
    ],
)
def test_a_redis_socket_url_that_kombu_misreads_is_refused(url: str, message: str) -> None:
    ((told, _),) = problems_of(url)
    assert message in told
    assert SECRET not in told


def test_a_connection_with_an_alternate_that_would_be_misread_is_refused() -> None:
    connection = kombu.Connection(["amqp://a", f"amqp://u:{SECRET}/x@b"])
    with pytest.raises(SettingsError) as caught:
        connections[connection]
    assert SECRET not in str(caught.value)


def test_a_scheme_in_capitals_is_the_same_transport(amqp_url: str) -> None:
    url = f"AMQP{amqp_url.removeprefix('amqp')}"
    with connections[url].acquire(timeout=10) as connection:
        assert connection.connected
