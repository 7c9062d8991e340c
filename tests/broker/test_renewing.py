"""A reset opens one new connection before it gives up those that work."""

from __future__ import annotations

import threading
from typing import Any

import amqp
import pytest

from kombu_pools_ext import events, renewing
from kombu_pools_ext.aliases import Pools
from kombu_pools_ext.control import local
from kombu_pools_ext.errors import ConnectionsKept
from tests.broker.common import PATIENCE, eventually
from tests.broker.rig import in_child
from tests.brokers import PrivateRabbitMQ, PrivateRedis, free_port

ROTATED = "new-password"


class Broker:
    """A private broker whose password can be rotated; `Pools` with the former one."""

    def __init__(self, server: Any, password: str) -> None:
        self.server = server
        self.password = password

    def rotate(self) -> None:
        if isinstance(self.server, PrivateRabbitMQ):
            self.server.change_password("shop", ROTATED)
        else:
            import redis

            with redis.Redis(port=self.server.port) as admin:
                admin.execute_command("ACL", "SETUSER", "shop", "resetpass", f">{ROTATED}")
        self.password = ROTATED

    @property
    def url(self) -> str:
        if isinstance(self.server, PrivateRabbitMQ):
            return self.server.url_of("shop", self.password, "%2F")
        return f"redis://shop:{self.password}@127.0.0.1:{self.server.port}/0"

    def pools(self, **settings: Any) -> Pools:
        return Pools({"default": {"URL": self.url, "LIMIT": 2, "RETRY": None, **settings}})


@pytest.fixture(params=["amqp", "redis"])
def broker(request: pytest.FixtureRequest) -> Broker:
    if request.param == "amqp":
        node: PrivateRabbitMQ = request.getfixturevalue("private_rabbitmq")
        node.add_user("shop", "first-password", configure=".*", write=".*", read=".*")
        return Broker(node, "first-password")
    redis = pytest.importorskip("redis")
    server: PrivateRedis = request.getfixturevalue("private_redis")
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", "shop", "reset")
        admin.execute_command(
            "ACL", "SETUSER", "shop", "on", ">first-password", "~*", "&*", "+@all"
        )
    return Broker(server, "first-password")


def publish(pools: Pools) -> None:
    pools.publish({}, "renewing", mandatory=False)


@pytest.mark.slow
def test_a_reset_with_a_rotated_password_keeps_what_works(broker: Broker) -> None:
    pools = broker.pools()
    pool = pools.connections["default"]
    publish(pools)
    broker.rotate()
    told: list[Any] = []

    def listener(**what: Any) -> None:
        told.append(what)

    events.connection_closed.connect(listener)
    try:
        with pytest.raises(ConnectionsKept, match="alias 'default' keeps its connection") as caught:
            pools.reset()
        [row] = local.reset(pools)
    finally:
        events.connection_closed.disconnect(listener)
    assert list(caught.value.failures) == ["default"]
    assert caught.value.__cause__ is caught.value.failures["default"]
    assert "first-password" not in str(caught.value)
    assert (row.ok, row.closed) == (False, 0)
    assert row.error is not None
    assert "keeps its connection, because a new one cannot be opened: " in row.error
    assert told == []
    publish(pools)
    assert (pool.stats().opened, pool.stats().outage) == (1, None)
    # The old way, if somebody asks for it.
    [row] = local.reset(pools, force=True)
    assert (row.ok, row.closed) == (True, 1)
    with pytest.raises(Exception, match=r"ACCESS_REFUSED|WRONGPASS|username-password"):
        publish(pools)


@pytest.mark.slow
def test_a_reset_that_was_refused_for_its_password_says_what_to_do(broker: Broker) -> None:
    url, [host, port] = broker.url, ["127.0.0.1", broker.server.port]
    transport = url.partition(":")[0]
    kept = {"default": {"URL": url}}
    asking = {"default": {"HOST": host, "PORT": port, "TRANSPORT": transport}}
    asking["default"]["CREDENTIALS"] = lambda: ("shop", "first-password")
    ways = {
        "these settings cannot be reloaded: restart the process": Pools(kept),
        "change it where the settings come from, and `reload`": Pools(lambda: kept),
        "CREDENTIALS returned this login: does it know the new password yet?": Pools(asking),
    }
    for pools in ways.values():
        publish(pools)
    broker.rotate()
    for remedy, pools in ways.items():
        [row] = local.reset(pools)
        assert row.error is not None
        assert row.error.endswith(remedy)
    # A broker that is away has refused nobody.
    broker.server.kill()
    try:
        [row] = local.reset(ways.popitem()[1])
        assert row.ok or "password" not in str(row.error)
    finally:
        broker.server.start()


@pytest.mark.slow
def test_a_reset_while_leases_are_out_gives_them_up_as_they_come_back(broker: Broker) -> None:
    pools = broker.pools()
    pool = pools.connections["default"]
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        # As many as the limit says: for a moment the new one is one more.
        with pool.acquire(timeout=PATIENCE):
            assert pools.reset() == {"default": (0, 2)}
            producer.publish({}, routing_key="renewing", mandatory=False)
    assert pool.stats().closed == {"limit": 1, "drained": 2}
    publish(pools)
    broker.rotate()
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        with pytest.raises(ConnectionsKept, match="its connection"):
            pools.reset()
        producer.publish({}, routing_key="renewing", mandatory=False)
    publish(pools)
    assert pool.stats().opened == 4


@pytest.mark.slow
@pytest.mark.forks
def test_a_reset_in_a_child_is_about_its_own(broker: Broker) -> None:
    pools = broker.pools()
    publish(pools)

    def child() -> tuple[Any, ...]:
        nothing = pools.reset()["default"]
        publish(pools)
        return tuple(nothing), tuple(pools.reset()["default"])

    assert in_child(child) == ((0, 0), (1, 0))
    publish(pools)
    assert pools.connections["default"].stats().opened == 1


@pytest.mark.slow
def test_a_user_that_is_gone_and_a_broker_that_is_away(private_rabbitmq: PrivateRabbitMQ) -> None:
    node = private_rabbitmq
    node.add_user("leaving", "word-of-the-one", configure=".*", write=".*", read=".*")
    pools = Pools(
        default={"url": node.url_of("leaving", "word-of-the-one", "%2F"), "retry": None},
        other={"url": node.url, "limit": 3},
    )
    for alias in pools.settings:
        pools.publish({}, "renewing", using=alias, mandatory=False)
    node.delete_user("leaving")
    # The broker hangs up on it by itself. The other one is reset all the same.
    with pytest.raises(ConnectionsKept) as caught:
        pools.reset()
    assert list(caught.value.failures) == ["default"]
    assert isinstance(caught.value.__cause__, amqp.AccessRefused)
    assert pools.connections["other"].stats().closed == {"drained": 1}
    node.kill()
    default, other = local.reset(pools)
    assert (default.ok, other.ok) == (False, False)
    assert "keeps its connection, because a new one cannot be opened" in str(other.error)
    node.start()
    eventually(lambda: local.reset(pools, ["other"])[0].ok)
    pools.publish({}, "renewing", using="other", mandatory=False)


def test_a_new_connection_that_never_comes_ends_with_the_time_out(redis_url: str) -> None:
    pools = Pools(default={"url": redis_url, "limit": 2})
    pool = pools.connections["default"]
    pool.acquire(timeout=PATIENCE).release()
    going = threading.Event()
    opening = pool._driver.open_within

    def hang(seconds: float) -> Any:
        going.wait(PATIENCE)
        return opening(seconds)

    pool._driver.open_within = hang  # type: ignore[method-assign]  # a name server that does not answer
    with pytest.raises(ConnectionsKept, match=r"no connection within 0\.1 s"):
        pools.reset(timeout=0.1)
    assert pool.stats().idle == 1
    going.set()


def test_an_interrupted_reset_leaves_nothing_open(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = Pools(a={"url": redis_url, "limit": 2}, b={"url": redis_url, "limit": 3})
    for pool in pools.connections.values():
        pool.acquire(timeout=PATIENCE).release()
    closed: list[Any] = []
    for pool in pools.connections.values():
        close = pool._driver.close
        monkeypatch.setattr(
            pool._driver,
            "close",
            lambda item, c=close, **how: (closed.append(item), c(item, **how)),
        )

    def interrupt(item: Any) -> None:
        closed.append(item)
        item.collect()
        raise KeyboardInterrupt

    monkeypatch.setattr(pools.connections["a"], "renew", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pools.reset()
    eventually(lambda: len(closed) == 2)
    assert [pool.stats().idle for pool in pools.connections.values()] == [1, 1]


@pytest.mark.parametrize("timeout", [None, True, "5", -1.0, float("nan")])
def test_a_time_out_that_is_none_is_refused(timeout: Any) -> None:
    pools = Pools(default={"url": f"redis://127.0.0.1:{free_port()}/0"})
    with pytest.raises((TypeError, ValueError), match="timeout"):
        pools.reset(timeout=timeout)


def test_the_words_of_what_is_kept() -> None:
    assert renewing.Kept(1, OSError("x")).told() == (
        "keeps its connection, because a new one cannot be opened: x"
    )
    assert renewing.Kept(3, OSError()).told() == (
        "keeps its 3 connections, because a new one cannot be opened: OSError"
    )
