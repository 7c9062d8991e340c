"""Two objects that are asked for credentials are one where nothing tells them apart, and never where something may."""

from __future__ import annotations

import datetime
import enum
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kombu_pools_ext.settings.likeness import MOST_ALONE, stand_in


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
def test_what_is_made_anew_alike_is_one(make: Callable[[], Any]) -> None:
    assert stand_in(make()) == stand_in(make())
    assert hash(stand_in(make())) == hash(stand_in(make()))


def test_what_differs_is_not_one() -> None:
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
        # They hold what cannot be looked into.
        *(Provider(threading.Lock()) for _ in range(3)),
        *(Provider(Client()) for _ in range(3)),
        Provider(gc),
        None,
        "shop.vault.credentials",
    ]
    assert len({stand_in(one) for one in objects}) == len(objects)


def test_a_token_that_is_kept_later_makes_no_other_of_it() -> None:
    provider = Provider("app")
    before = stand_in(provider), stand_in(provider.get_credentials)
    provider.what = ("app", "token")
    assert (stand_in(provider), stand_in(provider.get_credentials)) == before
    assert stand_in(provider) == stand_in(Provider("app")) != stand_in(Provider("app", "token"))


def test_those_that_cannot_be_compared_are_few() -> None:
    class Locked(Provider):
        pass

    kept = [Locked(threading.Lock()) for _ in range(MOST_ALONE)]
    keys = {stand_in(one) for one in kept}
    assert len(keys) == MOST_ALONE
    # Each of them is known.
    assert {stand_in(one.get_credentials) for one in kept} == {
        stand_in(one.get_credentials) for one in kept
    }
    with pytest.raises(ValueError, match=r"16 objects of .*Locked.* make one object and keep it"):
        stand_in(Locked(threading.Lock()))
    with pytest.raises(ValueError, match="Locked"):
        stand_in(Locked(threading.Lock()).get_credentials)
    # Not for ever: who is gone makes room.
    keys.clear()
    del kept[0]
    gc.collect()
    stand_in(Locked(threading.Lock()))


def test_what_contains_itself_is_alone() -> None:
    provider = Provider()
    provider.what = (provider,)
    assert stand_in(provider) == stand_in(provider)
