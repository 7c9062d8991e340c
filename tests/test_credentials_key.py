"""Credential providers have equal keys if nothing distinguishes them, and different keys if anything may."""

from __future__ import annotations

import datetime
import enum
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kombu_pools_ext.settings.credentials_key import MAX_INCOMPARABLE, credentials_key


class Provider:
    def __init__(self, *what: Any) -> None:
        self.what = what

    def get_credentials(self) -> Any:
        return "app", self.what


class Slotted:
    __slots__ = ("user",)

    def __init__(self, user: str) -> None:
        self.user = user


class Says(Provider):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Says) and other.what[0] == self.what[0]

    def __hash__(self) -> int:
        return hash(self.what[0])


class Region(enum.Enum):
    NORTH = 1
    SOUTH = 2


class Client(threading.local):
    pass


def closing_over(user: Any) -> Callable[[], Any]:
    return lambda: user


DAY = datetime.datetime(2026, 1, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Provider("app", 5, None, [1, {"a": (2.0, b"x")}], {Region.NORTH}, DAY),
        lambda: Provider(Provider("app"), max, Provider, datetime),
        lambda: Slotted("app"),
        lambda: Says("app", threading.Lock()),
        lambda: closing_over(Provider("app")),
        lambda: Provider("app").get_credentials,
        lambda: Slotted,
    ],
)
def test_providers_made_alike_have_equal_keys(make: Callable[[], Any]) -> None:
    assert credentials_key(make()) == credentials_key(make())
    assert hash(credentials_key(make())) == hash(credentials_key(make()))


def test_providers_that_differ_have_different_keys() -> None:
    class Other(Provider):
        pass

    objects = [
        *(Provider(one) for one in (1, 1.0, True, "1", b"1", (1,), [1], {1}, {1: 1}, Region.NORTH)),
        Provider(Region.SOUTH),
        Provider(Provider(1)),
        Provider(Provider(2)),
        Provider(max),
        Other(1),
        Slotted("a"),
        Slotted("b"),
        Says("a"),
        Says("b"),
        closing_over(1),
        closing_over(2),
        Provider(1).get_credentials,
        Provider(2).get_credentials,
        # They hold objects that cannot be compared.
        *(Provider(threading.Lock()) for _ in range(3)),
        *(Provider(Client()) for _ in range(3)),
        Provider(gc),
        None,
        "shop.vault.credentials",
    ]
    assert len({credentials_key(one) for one in objects}) == len(objects)


def test_a_token_that_a_provider_stores_later_does_not_change_its_key() -> None:
    provider = Provider("app")
    before = credentials_key(provider), credentials_key(provider.get_credentials)
    provider.what = ("app", "token")
    assert (credentials_key(provider), credentials_key(provider.get_credentials)) == before
    assert (
        credentials_key(provider)
        == credentials_key(Provider("app"))
        != credentials_key(Provider("app", "token"))
    )


def test_too_many_providers_that_cannot_be_compared_are_refused() -> None:
    class Locked(Provider):
        pass

    kept = [Locked(threading.Lock()) for _ in range(MAX_INCOMPARABLE)]
    keys = {credentials_key(one) for one in kept}
    assert len(keys) == MAX_INCOMPARABLE
    # Each of them can be used again.
    assert {credentials_key(one.get_credentials) for one in kept} == {
        credentials_key(one.get_credentials) for one in kept
    }
    with pytest.raises(ValueError, match=r"16 objects of .*Locked.* make one object and keep it"):
        credentials_key(Locked(threading.Lock()))
    with pytest.raises(ValueError, match="Locked"):
        credentials_key(Locked(threading.Lock()).get_credentials)
    # An object that is freed makes room for another.
    keys.clear()
    del kept[0]
    gc.collect()
    credentials_key(Locked(threading.Lock()))


def test_a_provider_that_contains_itself_equals_only_itself() -> None:
    provider = Provider()
    provider.what = (provider,)
    assert credentials_key(provider) == credentials_key(provider)
