"""Random settings are either valid or refused, and no error shows a password."""

from __future__ import annotations

import string
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from kombu_pools_ext.settings import CHECKS, PoolSettings, SettingsError, parse_settings

SECRET = "Pa55-s3cr3t"

#: What has a meaning in a URL, and a little of what has none.
letters = st.text(
    alphabet=string.ascii_letters + string.digits + ":/?#@;&=%[]. \t\n\\é\x00", max_size=6
)
schemes = st.sampled_from(
    [
        "amqp",
        "amqps",
        "pyamqp",
        "redis",
        "rediss",
        "redis+socket",
        "sentinel",
        "sqs",
        "memory",
        "ampq",
        "http",
        "",
    ]
)
urls = st.builds(
    "{}{}{}:{}{}{}@{}{}{}".format,
    schemes,
    st.just("://"),
    letters,
    st.sampled_from(["", "", "%40", "?", "#", "/", ":", "["]),
    st.just(SECRET),
    st.sampled_from(["", "", ":", "/", "?x=1", "#", ";", "@", "%"]),
    letters,
    st.sampled_from(["", ":5672", ":0", ":99999", ":x", "/1", "//", "/a/b"]),
    st.one_of(st.just(""), letters, st.builds("?{}={}".format, letters, letters)),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 20),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.complex_numbers(),
    st.sampled_from(
        [object(), int, ..., "json", "pickle", "gzip", "amqp://localhost//", NotImplemented]
    ),
    urls,
)
names = st.one_of(st.text(max_size=6), scalars)
#: Where a password is meant to be.
secrets = st.dictionaries(
    st.sampled_from(
        ["password", "login_response", "keyfile_password", "sentinel_kwargs", "ssl_password"]
    ),
    st.one_of(st.just(SECRET), st.fixed_dictionaries({"password": st.just(SECRET)})),
    max_size=2,
)
junk = st.recursive(
    st.one_of(scalars, secrets),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(names, inner, max_size=3),
        st.frozensets(st.integers(), max_size=2),
    ),
    max_leaves=6,
)
spellings = [one for name in CHECKS for one in (name, name.upper(), name[:-1], name.title())]
keys = st.one_of(st.sampled_from(spellings), names)
pool = st.one_of(
    junk,
    st.dictionaries(keys, junk, max_size=4),
    st.builds(
        lambda url, rest: {"URL": url, **rest},
        st.one_of(urls, st.just("amqp://localhost//")),
        st.dictionaries(keys, junk, max_size=3),
    ),
)


def told(error: SettingsError) -> str:
    """Return everything that a log or a debugger shows of the error."""
    return f"{error} {error!r} {error.args} {error.problems!r}"


def check(given: Any, parse: Any) -> None:
    try:
        found = parse(given)
    except SettingsError as error:
        problems, said = error.problems, told(error)
    else:
        problems, said = None, repr(found)
        for one in found.values():
            assert isinstance(one, PoolSettings)
            assert one.url
            hash(one)
            # What is valid is what a connection can be made of; kombu imports a transport only then.
            said += f"{one!s} {one!r}"
    assert problems != ()
    assert SECRET not in said


@settings(max_examples=80)
@given(st.one_of(junk, st.dictionaries(st.one_of(st.just("default"), names), pool, max_size=2)))
def test_any_aliases_are_pools_or_are_refused(given: Any) -> None:
    check(given, parse_settings)


@settings(max_examples=80)
@given(
    st.dictionaries(st.one_of(st.sampled_from(spellings), st.text(max_size=6)), junk, max_size=4)
)
def test_any_keywords_are_a_pool_or_are_refused(given: dict[str, Any]) -> None:
    check(given, lambda keywords: {"it": PoolSettings.of(**keywords)})


@settings(max_examples=80)
@given(st.lists(urls, min_size=1, max_size=2))
def test_any_url_is_good_or_refused(given: list[str]) -> None:
    check({"default": {"URL": given}}, parse_settings)
    check({"default": ";".join(given)}, parse_settings)


def test_a_shown_secret_would_be_found() -> None:
    accepted = parse_settings({"default": f"amqp://user:{SECRET}@localhost//"})
    assert SECRET in accepted["default"].url[0]
    with pytest.raises(AssertionError):
        check({"default": 1}, lambda _: {SECRET: accepted["default"]})
