"""kombu 5.7 takes a callable for a password, and asks it at each connect; so do our pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kombu
import pytest
from amqp.exceptions import AccessRefused
from kombu.utils.url import parse_url

from kombu_pools_ext import Pools
from kombu_pools_ext import pools as drop_in
from kombu_pools_ext.engine import PoolOptions

from .common import PATIENCE, eventually

pytestmark = pytest.mark.skipif(
    tuple(map(int, kombu.__version__.split(".")[:2])) < (5, 7), reason="kombu is older than 5.7"
)

SECRET = "not-the-password-of-anyone"


class Password:
    """Says what it is set to, and counts how often it was asked."""

    def __init__(self, says: str) -> None:
        self.says = says
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        return self.says


@pytest.fixture
def broker(amqp_url: str) -> Callable[[Any], kombu.Connection]:
    """The test's broker, with a password of one's own."""
    parts = parse_url(amqp_url)

    def connection(password: Any) -> kombu.Connection:
        return kombu.Connection(
            hostname=parts["hostname"],
            port=parts["port"],
            userid=parts["userid"],
            password=password,
            virtual_host=parts["virtual_host"],
            transport="pyamqp",
        )

    return connection


@pytest.mark.parametrize("kind", ["connections", "producers"])
def test_it_is_asked_at_each_connect_and_not_for_a_lease(
    kind: str, broker: Callable[[Any], kombu.Connection]
) -> None:
    pools, password = Pools(), Password("guest")
    pool = getattr(pools, kind)[broker(password)]
    for _ in range(3):
        with pool.acquire(timeout=PATIENCE):
            pass
    assert password.asked == 1
    with pool.acquire(timeout=PATIENCE), pool.acquire(timeout=PATIENCE):
        pass
    assert password.asked == 2
    pools.reset()


def test_what_it_says_now_is_what_the_next_connection_takes(
    broker: Callable[[Any], kombu.Connection],
) -> None:
    pools, password = Pools(), Password(SECRET)
    pool = pools.producers[broker(password)]

    def publishes() -> bool:
        """Whether the broker lets it in; for a moment the pool says at once what the last try came to."""
        try:
            with pool.acquire(timeout=PATIENCE) as producer:
                producer.publish({"id": 1}, routing_key="nobody")
        except AccessRefused as error:
            told.append(str(error))
            return False
        return True

    told: list[str] = []
    assert not publishes()
    password.says = "guest"
    eventually(publishes)
    assert not [text for text in told if SECRET in text]
    pools.reset()


def test_one_callable_is_one_pool_and_another_is_another(
    broker: Callable[[Any], kombu.Connection],
) -> None:
    pools, password = Pools(), Password("guest")
    pool = pools.connections[broker(password)]
    assert pools.connections[broker(password)] is pool
    assert pools.connections[broker(Password("another"))] is not pool
    assert pools.connections[broker(lambda: "guest")] is not pool
    assert password.asked == 0  # whoever only looks a pool up learns no secret
    pools.reset()


def test_nothing_that_is_shown_asks_it_or_has_what_it_says(
    broker: Callable[[Any], kombu.Connection],
) -> None:
    pools, password = Pools(), Password(SECRET)
    pool = pools.connections[broker(password)]
    shown = f"{pool!r} {list(pools.connections)!r} {pool.stats()!r}"
    assert SECRET not in shown
    assert password.asked == 0
    pools.reset()


def test_a_connection_that_was_opened_in_the_background_asks_it_too(
    broker: Callable[[Any], kombu.Connection],
) -> None:
    password = Password("guest")
    pool = drop_in.ConnectionPool(broker(password), limit=2, options=PoolOptions(min_idle=2))
    with pool.acquire(timeout=PATIENCE):
        pass
    eventually(lambda: password.asked == 2)
    pool.force_close_all()
