"""A `retry_policy` given with the message is kombu's; `timeout` is for all tries, `confirm_timeout` for each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import kombu
import pytest
from kombu.exceptions import OperationalError

from kombu_pools_ext import Pools, pools
from kombu_pools_ext.errors import PublishUnknown
from kombu_pools_ext.prepared import prepare
from kombu_pools_ext.settings import RetryPolicy
from tests.broker.common import KOMBU, OURS, PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming, through
from tests.proxy import TO_CLIENT, Proxy

MakeInbox = Callable[[str], Inbox]
MakePool = Callable[..., pools.ProducerPool]

#: Seconds for one try, where the outage is to last longer than that.
SHORT = 0.4
OFTEN = {"interval_start": 0.02, "interval_step": 0.0, "interval_max": 0.02}

BROKERS = [
    pytest.param("amqp_url", marks=pytest.mark.broker),
    pytest.param("redis_url", marks=pytest.mark.redis),
]


@pytest.fixture(params=BROKERS)
def origin(request: pytest.FixtureRequest) -> str:
    """The URL of each broker that can be away."""
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def proxy(origin: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(origin)


@pytest.fixture
def make(origin: str, proxy: Proxy) -> Iterator[MakePool]:
    """Makes a pool of one producer, by way of the proxy."""
    made: list[pools.ConnectionPool] = []

    def make(confirm_timeout: float | None = None, **options: Any) -> pools.ProducerPool:
        connection = confirming(through(proxy, origin))
        made.append(pools.ConnectionPool(connection, limit=1, confirm_timeout=confirm_timeout))
        return pools.ProducerPool(made[-1], limit=1, **options)

    yield make
    proxy.heal()
    for one in made:
        one.force_close_all()


def warm(producers: pools.ProducerPool, queue: str) -> Any:
    """A producer that has published."""
    producer = producers.acquire(timeout=PATIENCE)
    producer.publish("warm", routing_key=queue, confirm_timeout=PATIENCE)
    return producer


def go_away(proxy: Proxy) -> None:
    """The broker is away until `heal()`."""
    proxy.refuse()
    proxy.cut()


class Told:
    """An `errback` that notes the pauses, and does something after some seconds of failures."""

    def __init__(self, do: Callable[[], None] = lambda: None, after: float = 0.0) -> None:
        self.pauses: list[float] = []
        self._began = time.monotonic()
        self._do, self._after = do, after

    def __call__(self, error: BaseException, pause: float) -> None:
        self.pauses.append(pause)
        if len(self.pauses) > 1 and time.monotonic() - self._began > self._after:
            self._do()


# -- how it is counted -------------------------------------------------------------------------------------------------


@pytest.mark.broker
@pytest.mark.parametrize("module", [KOMBU, OURS], ids=["kombu", "ours"])
@pytest.mark.parametrize(
    "policy, pauses",
    [
        ({"max_retries": 0}, []),
        ({"max_retries": 1, "interval_start": 0}, [0, 0]),
        ({"max_retries": 2, "interval_start": 0.01, "interval_step": 0.02}, [0, 0.01, 0.03]),
        (
            {"max_retries": 3, "interval_start": 0, "interval_step": 0.02, "interval_max": 0.02},
            [0, 0, 0.02, 0.02],
        ),
        # What is left out is one second, in kombu.
        ({"max_retries": 1}, [0, 1.0]),
    ],
)
def test_tries_are_counted_and_paused_for_as_in_kombu(
    module: ModuleType,
    proxied: Callable[[str], Proxy],
    amqp_url: str,
    queue: str,
    policy: dict[str, float],
    pauses: list[float],
) -> None:
    """Each that finds the broker down counts at once, so that a dead broker costs the pauses and no more."""
    proxy, told = proxied(amqp_url), Told()
    with module.producers[kombu.Connection(through(proxy, amqp_url))].acquire() as producer:
        producer.publish("warm", routing_key=queue)
        go_away(proxy)
        with pytest.raises((OperationalError, OSError)):
            producer.publish(
                "x", routing_key=queue, retry=True, retry_policy={**policy, "errback": told}
            )
    assert told.pauses == pytest.approx(pauses)
    module.reset()


def test_the_policy_goes_on_for_longer_than_a_try_may_take(
    make: MakePool, proxy: Proxy, origin: str, inbox: MakeInbox
) -> None:
    box, producers = inbox(origin), make(confirm_timeout=SHORT)
    for most in (10_000, None):
        producer, told = warm(producers, box.name), Told(proxy.heal, after=2 * SHORT)
        go_away(proxy)
        policy = {"max_retries": most, "errback": told, **OFTEN}
        producer.publish("x", routing_key=box.name, retry=True, retry_policy=policy)
        assert not producer.broken
        producer.release()
        assert len(told.pauses) > 5
    assert set(box.bodies()) == {"warm", "x"}


def test_timeout_is_for_all_tries(make: MakePool, proxy: Proxy, queue: str) -> None:
    producers = make()
    producer = warm(producers, queue)
    go_away(proxy)
    policy = {"max_retries": None, **OFTEN}
    with pytest.raises(OperationalError):
        producer.publish("x", routing_key=queue, retry=True, retry_policy=policy, timeout=SHORT)
    assert producer.released
    assert producers.connections.lent == 0


@pytest.mark.parametrize("policy", [OFTEN, {}, None])
def test_nobody_tries_for_ever_who_did_not_ask_for_it(
    make: MakePool, proxy: Proxy, queue: str, policy: dict[str, float] | None
) -> None:
    """kombu's default is to try for ever; without a number of tries, they have the time of one."""
    producers = make(confirm_timeout=SHORT)
    producer = warm(producers, queue)
    go_away(proxy)
    with pytest.raises(OperationalError):
        producer.publish("x", routing_key=queue, retry=True, retry_policy=policy)
    assert producers.connections.lent == 0


def test_a_policy_replaces_that_of_the_pool(make: MakePool, proxy: Proxy, queue: str) -> None:
    producers = make(retry=RetryPolicy(max_retries=1000, interval_start=60, interval_max=60))
    producer, told = warm(producers, queue), Told()
    go_away(proxy)
    policy = {"max_retries": 3, "errback": told, **OFTEN}
    with pytest.raises(OperationalError):
        producer.publish("x", routing_key=queue, retry_policy=policy)
    assert told.pauses == [0.0, 0.02, 0.02, 0.02]


# -- how long each may take --------------------------------------------------------------------------------------------


def test_a_silent_peer_ends_each_try(make: MakePool, proxy: Proxy, queue: str) -> None:
    producers = make(confirm_timeout=SHORT)
    producer, told = warm(producers, queue), Told()
    proxy.silence()
    policy = {"max_retries": 2, "errback": told, **OFTEN}
    with pytest.raises(PublishUnknown):
        producer.publish("x", routing_key=queue, retry=True, retry_policy=policy)
    # The first publish, and two attempts to connect before the last one.
    assert told.pauses == [0.0, 0.02, 0.02]
    assert producers.connections.lent == 0


def late(proxy: Proxy, seconds: float) -> threading.Thread:
    """Hold back what the broker says until *seconds* have passed."""
    proxy.hold(TO_CLIENT)
    began = time.monotonic()

    def heal() -> None:
        eventually(lambda: time.monotonic() - began > seconds)
        proxy.heal()

    thread = threading.Thread(target=heal)
    thread.start()
    return thread


def test_a_try_may_take_longer_than_the_pools_if_the_caller_says_so(
    make: MakePool, proxy: Proxy, origin: str, inbox: MakeInbox
) -> None:
    box, producers = inbox(origin), make(confirm_timeout=SHORT)
    for more in ({}, {"timeout": PATIENCE}):
        producer = warm(producers, box.name)
        healing = late(proxy, 2 * SHORT)
        producer.publish("x", routing_key=box.name, confirm_timeout=PATIENCE, **more)
        assert not producer.broken
        producer.release()
        healing.join()
    assert box.bodies(4).count("x") == 2


def test_timeout_alone_leaves_a_try_its_own_bound(make: MakePool, proxy: Proxy, queue: str) -> None:
    producer = warm(make(confirm_timeout=SHORT), queue)
    proxy.hold(TO_CLIENT)
    began = time.monotonic()
    with pytest.raises((PublishUnknown, *producer.connection.recoverable_connection_errors)):
        producer.publish("x", routing_key=queue, timeout=2 * PATIENCE)
    assert time.monotonic() - began < PATIENCE
    producer.release()


def test_the_pools_own_plan_goes_on_for_a_longer_timeout(
    make: MakePool, proxy: Proxy, origin: str, inbox: MakeInbox
) -> None:
    """Each of its tries waits for the end of an outage: one is enough."""
    once = RetryPolicy(max_retries=1, interval_start=0, interval_step=0, interval_max=0)
    box, producers = inbox(origin), make(confirm_timeout=SHORT, retry=once)
    producer = warm(producers, box.name)
    go_away(proxy)
    healed = threading.Timer(2 * SHORT, proxy.heal)
    healed.start()
    producer.publish("x", routing_key=box.name, timeout=PATIENCE)
    healed.join()
    producer.release()
    assert box.bodies(2)[-1] == "x"


# -- by way of an alias ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [False, True])
def test_by_alias(proxy: Proxy, origin: str, inbox: MakeInbox, prepared: bool) -> None:
    box = inbox(origin)
    url = through(proxy, origin)
    aliases = Pools(default={"url": url, "confirm_timeout": SHORT, "limit": 1})
    producer = aliases.producers["default"].acquire(timeout=PATIENCE)
    producer.publish("warm", routing_key=box.name, confirm_timeout=PATIENCE)
    producer.release()
    told = Told(proxy.heal, after=2 * SHORT)
    policy = {"max_retries": 10_000, "errback": told, **OFTEN}
    arguments: dict[str, Any] = {"retry_policy": policy, "acquire_timeout": PATIENCE}
    message = prepare(aliases, "x", box.name, **arguments) if prepared else None
    with aliases.producers["default"].acquire(timeout=PATIENCE) as producer:
        go_away(proxy)
        if message is None:
            producer.publish("x", routing_key=box.name, retry_policy=policy)
        else:
            kwargs = {k: v for k, v in message.arguments.items() if k != "acquire_timeout"}
            producer.publish(message.body, **kwargs)
    assert len(told.pauses) > 5
    assert box.bodies(2)[-1] == "x"


def test_a_confirm_timeout_without_an_end_is_refused(memory_url: str) -> None:
    aliases = Pools(default={"url": memory_url})
    with pytest.raises(ValueError, match="confirm_timeout must have an end"):
        aliases.publish("x", "q", confirm_timeout=float("inf"))
    aliases.publish("x", "q", confirm_timeout=30, timeout=float("inf"))
