"""The channel that is asked for with its connection: in one go where that is known to go well, elsewhere one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import amqp
import kombu
import pytest
from kombu.transport import pyamqp

from kombu_pools_ext import pools
from kombu_pools_ext.engine import PoolOptions
from kombu_pools_ext.errors import PoolTimeout
from tests.broker.common import PATIENCE
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming, through
from tests.proxy import TO_CLIENT, TO_SERVER, FakeBroker, Frame, Proxy
from tests.proxy.frames import METHODS, Frames

OPEN, CHANNEL, SELECT, CLOSE = (
    METHODS[name] for name in ("connection.open", "channel.open", "confirm.select", "channel.close")
)


@pytest.fixture
def proxy(amqp_url: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(amqp_url)


@pytest.fixture
def make() -> Iterator[Callable[[kombu.Connection], pools.ProducerPool]]:
    """Makes a pool of one producer."""
    made: list[pools.ConnectionPool] = []

    def make(connection: kombu.Connection) -> pools.ProducerPool:
        made.append(pools.ConnectionPool(connection, limit=1))
        return pools.ProducerPool(made[-1])

    yield make
    for one in made:
        one.force_close_all()


MakePool = Callable[[kombu.Connection], pools.ProducerPool]


def asked(proxy: Proxy) -> list[Any]:
    """The methods that the client of the newest link has sent, without those of the handshake before."""
    frames = Frames()
    frames.look(bytearray(proxy.links[-1].sent(TO_SERVER)))
    methods = [seen.method for seen in frames.seen]
    return methods[methods.index(OPEN) :]


@pytest.mark.broker
@pytest.mark.parametrize("confirms", [True, False])
def test_all_is_asked_for_before_the_first_answer(
    proxy: Proxy, amqp_url: str, make: MakePool, inbox: Callable[[str], Inbox], confirms: bool
) -> None:
    box = inbox(amqp_url)
    url = through(proxy, amqp_url)
    producers = make(confirming(url) if confirms else kombu.Connection(url))
    wanted = [OPEN, CHANNEL, SELECT] if confirms else [OPEN, CHANNEL]
    proxy.play([(TO_CLIENT, Frame("connection.open-ok"), "hold")], coming=1)
    with pytest.raises(PoolTimeout):
        producers.acquire(timeout=0.2)
    assert proxy.wait_for(lambda: len(asked(proxy)) >= len(wanted))
    assert asked(proxy) == wanted
    proxy.heal()
    with producers.acquire(timeout=PATIENCE) as producer:
        producer.publish("one", routing_key=box.name)
        assert producer.channel.channel_id == 1
    assert len(proxy.links) == 1
    assert asked(proxy).count(CHANNEL) == 1
    assert asked(proxy).count(SELECT) == confirms
    assert box.bodies(1) == ["one"]


@pytest.mark.broker
def test_one_that_nobody_is_likely_to_use_is_closed_with_the_same_write(
    proxy: Proxy, amqp_url: str
) -> None:
    connections = pools.ConnectionPool(confirming(through(proxy, amqp_url)), limit=1)
    proxy.play([(TO_CLIENT, Frame("connection.open-ok"), "hold")], coming=1)
    with pytest.raises(PoolTimeout):
        connections.acquire(timeout=0.2)
    assert proxy.wait_for(lambda: len(asked(proxy)) >= 3)
    assert asked(proxy) == [OPEN, CHANNEL, CLOSE]
    proxy.heal()
    with connections.acquire(timeout=PATIENCE) as connection:
        # Its number is free again.
        assert connection.channel().channel_id == 1
    connections.force_close_all()


@pytest.mark.broker
def test_connections_alone_have_no_channel(amqp_url: str) -> None:
    connections = pools.ConnectionPool(confirming(amqp_url), limit=1)
    with connections.acquire(timeout=PATIENCE) as connection:
        assert {*connection.connection.channels} == {0}
    connections.force_close_all()


@pytest.mark.broker
def test_one_that_is_not_used_does_no_harm(amqp_url: str) -> None:
    connections = pools.ConnectionPool(
        confirming(amqp_url), limit=1, options=PoolOptions(check_after=0.0)
    )
    connections.lends_producers = True
    for _ in range(3):
        with connections.acquire(timeout=PATIENCE) as connection:
            first = connection.connection
            other = connection.channel()
            other.queue_declare(exclusive=True)
            other.close()
    with pools.ProducerPool(connections).acquire(timeout=PATIENCE) as producer:
        producer.publish("one", routing_key="nobody's")
        assert producer.connection.connection is first
    connections.force_close_all()


@pytest.mark.broker
@pytest.mark.parametrize("confirms", [True, False])
def test_one_that_is_not_used_is_not_what_a_borrower_left(
    confirms: bool, amqp_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    connections = pools.ConnectionPool(
        kombu.Connection(amqp_url, transport_options={"confirm_publish": confirms}), limit=1
    )
    connections.lends_producers = True
    with connections.acquire(timeout=PATIENCE) as connection:
        first = connection.connection
        assert connection.default_channel.is_open
    for _ in range(2):
        with pools.ProducerPool(connections).acquire(timeout=PATIENCE) as producer:
            producer.publish("one", routing_key="nobody's", mandatory=False)
            assert producer.connection.connection is first
        with connections.acquire(timeout=PATIENCE) as connection:
            assert connection.default_channel.is_open
    assert caplog.messages == []
    connections.force_close_all()


@pytest.mark.broker
def test_another_product_is_asked_step_by_step(
    proxy: Proxy, amqp_url: str, make: MakePool, inbox: Callable[[str], Inbox]
) -> None:
    box = inbox(amqp_url)
    url = through(proxy, amqp_url)
    with kombu.Connection(url) as connection:
        connection.connect()
    place = proxy.links[0].sent(TO_CLIENT).index(b"RabbitMQ")
    proxy.play(
        [
            (TO_CLIENT, place, "garble", 1),
            (TO_CLIENT, Frame("connection.open-ok"), "hold"),
        ],
        coming=1,
    )
    producers = make(confirming(url))
    with pytest.raises(PoolTimeout):
        producers.acquire(timeout=0.2)
    assert asked(proxy) == [OPEN]
    proxy.heal()
    with producers.acquire(timeout=PATIENCE) as producer:
        assert producer.connection.connection.server_properties["product"] == "SabbitMQ"
        producer.publish("one", routing_key=box.name)
    assert asked(proxy)[:3] == [OPEN, CHANNEL, SELECT]
    assert box.bodies(1) == ["one"]


def test_another_products_is_closed_where_nobody_is_likely_to_use_it() -> None:
    with FakeBroker(product="SabbitMQ") as broker:
        connections = pools.ConnectionPool(kombu.Connection(broker.url), limit=1)
        with connections.acquire(timeout=PATIENCE) as connection:
            assert {*connection.connection.channels} == {0}
        assert broker.heard[2:] == ["connection.open", "channel.open", "channel.close"]
        connections.force_close_all()


@pytest.mark.broker
@pytest.mark.parametrize(
    "owner, name",
    [
        (pyamqp.Transport, "create_channel"),
        (amqp.Connection, "channel"),
        (amqp.Channel, "open"),
        (amqp.Channel, "confirm_select"),
    ],
)
def test_whoever_puts_himself_between_is_called(
    amqp_url: str, make: MakePool, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    calls = []
    own = getattr(owner, name)

    def between(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return own(*args, **kwargs)

    monkeypatch.setattr(owner, name, between)
    with make(confirming(amqp_url)).acquire(timeout=PATIENCE) as producer:
        producer.publish("one", routing_key="nobody's")
    assert len(calls) == 1


@pytest.mark.broker
def test_so_is_a_channel_class_of_somebodys_own(amqp_url: str, make: MakePool) -> None:
    class OwnChannel(pyamqp.Channel):
        pass

    class OwnConnection(pyamqp.Connection):
        Channel = OwnChannel

    class OwnTransport(pyamqp.Transport):
        Connection = OwnConnection

    connection = kombu.Connection(
        amqp_url, transport=OwnTransport, transport_options={"confirm_publish": True}
    )
    with make(connection).acquire(timeout=PATIENCE) as producer:
        producer.publish("one", routing_key="nobody's")
        assert isinstance(producer.channel, OwnChannel)
