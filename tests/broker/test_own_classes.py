"""Transports, connections and channels of a user's own classes get what the pool does for kombu's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import amqp
import kombu
import pytest
from amqp import transport as amqp_transport
from kombu.transport import pyamqp

from kombu_pools_ext import pools
from kombu_pools_ext.broker.amqp.channel import ChannelBase
from kombu_pools_ext.broker.amqp.session import AmqpSession
from kombu_pools_ext.broker.amqp.transport import TCPTransport
from kombu_pools_ext.broker.credentials import Credentials
from kombu_pools_ext.broker.driver import ConnectionDriver
from kombu_pools_ext.errors import BatchFailed, Outcome, PublishReturned
from tests.broker.common import PATIENCE, within
from tests.broker.conftest import Inbox
from tests.broker.rig import port_of, sockets_to
from tests.proxy import Proxy

NOBODY = "nobody's"
#: Seconds of a time-out that is meant to pass.
SOON = 0.2


class CountingTransport(amqp_transport.TCPTransport):
    """One of the user's, which has methods of its own."""

    writes = 0

    def write(self, data: Any) -> None:
        self.writes += 1
        super().write(data)


class MakesItsTransport(pyamqp.Connection):
    """Leaves to py-amqp what it could do by itself."""

    def Transport(self, *args: Any, **options: Any) -> Any:  # noqa: N802  # py-amqp's name
        return super().Transport(*args, **options)


class MakesAnother(pyamqp.Connection):
    def Transport(  # noqa: N802  # py-amqp's name
        self, host: str, connect_timeout: Any, *args: Any, **options: Any
    ) -> Any:
        return CountingTransport(host, connect_timeout=connect_timeout)


class OwnConnection(pyamqp.Connection):
    """A class of its own, and nothing else."""


class OwnChannel(pyamqp.Channel):
    """A class of its own, and nothing else."""


class WithMakesItsTransport(pyamqp.Transport):
    Connection = MakesItsTransport


class WithMakesAnother(pyamqp.Transport):
    Connection = MakesAnother


class WithAFactory(pyamqp.Transport):
    def Connection(self, **options: Any) -> Any:  # noqa: N802  # kombu's name
        made = OwnConnection(**options)
        made.Channel = OwnChannel
        return made


class Establishes(pyamqp.Transport):
    """Makes and opens its connections by itself."""

    def establish_connection(self) -> Any:
        client: Any = self.client
        made = OwnConnection(
            host=client.host,
            userid=client.userid,
            password=client.password,
            virtual_host=client.virtual_host,
            heartbeat=client.heartbeat,
            **client.transport_options,
        )
        made.client = client
        made.connect()
        return made


class EstablishesWithAChannel(Establishes):
    """The connection has a channel already."""

    def establish_connection(self) -> Any:
        made = super().establish_connection()
        made.client = None
        made.first = made.channel()
        return made


OWN = [WithMakesItsTransport, WithMakesAnother, WithAFactory, Establishes, EstablishesWithAChannel]
MakePool = Callable[..., Any]


@pytest.fixture
def make(amqp_url: str) -> Iterator[MakePool]:
    made: list[Any] = []

    def make(transport: Any = pyamqp.Transport, *, confirm: bool = True, **options: Any) -> Any:
        connection = kombu.Connection(
            amqp_url,
            transport=transport,
            heartbeat=60,
            transport_options={"confirm_publish": confirm},
        )
        made.append(pools.ConnectionPool(connection, limit=1, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.force_close_all()


def is_whole(pool: Any) -> bool:
    """Whether its only connection was opened once, and is idle."""
    stats = pool.stats()
    return (stats.opened, stats.idle, stats.closed) == (1, 1, {})


# -- classes of a user's own ---------------------------------------------------------------------------------


@pytest.mark.broker
@pytest.mark.parametrize("transport", OWN)
def test_a_returned_message_is_an_error_of_its_publish(make: MakePool, transport: Any) -> None:
    pool = make(transport)
    producers = pools.ProducerPool(pool)
    for _ in range(2):
        with producers.acquire(timeout=PATIENCE) as producer:
            with pytest.raises(PublishReturned):
                producer.publish("x", routing_key=NOBODY, mandatory=True)
            with pytest.raises(BatchFailed), producer.batch() as batch:
                producer.publish("x", routing_key=NOBODY, mandatory=True)
            assert list(batch.results.values()) == [Outcome.RETURNED]
            assert isinstance(producer.connection.item.pooled_session, AmqpSession)
    assert is_whole(pool)


@pytest.mark.broker
@pytest.mark.parametrize("transport", OWN)
def test_it_has_heartbeats_and_deadlines(make: MakePool, transport: Any) -> None:
    pool = make(transport)
    with pool.acquire(timeout=PATIENCE) as lease:
        item = lease.item
        assert pool._driver.keep_alive_every(item) == 20
        assert item.pooled_session.transport.beat()
        with pytest.raises(TimeoutError), item.within(0.0):
            lease.connection.send_heartbeat()
    assert pool.stats().closed == {"broken": 1}


@pytest.mark.broker
@pytest.mark.parametrize("transport", OWN)
def test_what_a_lease_leaves_is_taken_back(
    make: MakePool, transport: Any, amqp_url: str, inbox: Callable[[str], Inbox]
) -> None:
    pool, box = make(transport), inbox(amqp_url)
    with pools.ProducerPool(pool).acquire(timeout=PATIENCE) as producer:
        producer.publish("kept", routing_key=box.name)
    with pool.acquire(timeout=PATIENCE) as lease:
        channel = lease.channel()
        assert isinstance(channel, ChannelBase)
        assert channel.basic_get(box.name) is not None
    assert box.bodies(1) == ["kept"]
    assert is_whole(pool)


@pytest.mark.broker
@pytest.mark.parametrize("transport", OWN)
def test_a_closed_connection_is_not_opened_again(make: MakePool, transport: Any) -> None:
    with make(transport).acquire(timeout=PATIENCE) as lease:
        established = lease.item.established
        established.collect()
        with pytest.raises(amqp.RecoverableConnectionError, match="is not opened again"):
            established.connect()


@pytest.mark.broker
@pytest.mark.parametrize("transport", OWN)
def test_a_peer_that_floods_an_idle_connection_is_bounded(make: MakePool, transport: Any) -> None:
    with make(transport).acquire(timeout=PATIENCE) as lease:
        established = lease.item.established
        with pytest.raises(amqp.exceptions.UnexpectedFrame, match="channel 77"):
            established.on_inbound_frame((1, 77, b"\0\x3c\0\x50" + bytes(9)))


@pytest.mark.broker
@pytest.mark.parametrize("transport", OWN)
def test_credentials_are_asked(make: MakePool, transport: Any) -> None:
    asked: list[int] = []
    credentials = Credentials(lambda: (asked.append(1), ("guest", "guest"))[1], names_user=True)
    with make(transport, credentials=credentials).acquire(timeout=PATIENCE):
        assert asked == [1]


@pytest.mark.parametrize("transport", [WithMakesItsTransport, WithMakesAnother, WithAFactory])
def test_a_silent_peer_is_given_up_in_time(mute: Proxy, transport: Any) -> None:
    url = f"amqp://{mute.address}//"
    connection = kombu.Connection(url, transport=transport, connect_timeout=SOON)
    with pytest.raises(Exception, match="it accepted, and said nothing"):
        within(PATIENCE, ConnectionDriver(lambda: connection).open)


@pytest.mark.broker
def test_the_users_objects_keep_their_classes_and_methods(make: MakePool) -> None:
    pool = make(WithMakesAnother)
    with pools.ProducerPool(pool).acquire(timeout=PATIENCE) as producer:
        established = producer.connection.item.established
        assert isinstance(established, MakesAnother)
        transport = established._transport
        assert isinstance(transport, CountingTransport)
        assert transport is producer.connection.item.pooled_session.transport
        before = transport.writes
        producer.publish("x", routing_key=NOBODY, mandatory=False)
        assert transport.writes > before
    with make(WithAFactory).acquire(timeout=PATIENCE) as lease:
        assert isinstance(lease.channel(), OwnChannel)
    with make(EstablishesWithAChannel).acquire(timeout=PATIENCE) as lease:
        first = lease.item.established.first
        assert isinstance(first, ChannelBase)
        assert lease.item.established.client is not None


@pytest.mark.broker
def test_without_a_first_channel_a_users_open_connection_is_closed(amqp_url: str) -> None:
    made: list[Any] = []

    class Refuses(Establishes):
        def create_channel(self, connection: Any) -> Any:
            made.append(connection)
            raise amqp.exceptions.ResourceError("no more channels")

    driver = ConnectionDriver(lambda: kombu.Connection(amqp_url, transport=Refuses))
    before = sockets_to(port_of(amqp_url))
    with pytest.raises(Exception, match="no more channels"):
        driver.open()
    assert not made[0].connected
    assert sockets_to(port_of(amqp_url)) == before


@pytest.mark.broker
def test_a_users_open_connection_has_its_first_channel_in_time(amqp_url: str) -> None:
    class Waits(Establishes):
        def create_channel(self, connection: Any) -> Any:
            connection.drain_events()

    connection = kombu.Connection(
        amqp_url, transport=Waits, transport_options={"connect_timeout": SOON}
    )
    with pytest.raises(Exception, match="timed out"):
        within(PATIENCE, ConnectionDriver(lambda: connection).open)
    # Nothing bounds it after that, even if nobody but kombu uses it.
    item = ConnectionDriver(lambda: kombu.Connection(amqp_url, transport=Establishes)).new()
    item.connect()
    assert item._connection._transport.session.deadline is None
    item.collect()


# -- classes that were replaced in kombu and py-amqp ---------------------------------------------------------


@pytest.mark.broker
def test_a_replaced_connection_class_is_used(
    make: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyamqp.Transport, "Connection", OwnConnection)
    with make().acquire(timeout=PATIENCE) as lease:
        assert isinstance(lease.item.established, OwnConnection)


@pytest.mark.broker
def test_a_connection_class_that_was_replaced_before_the_import_is_used(amqp_url: str) -> None:
    program = f"""
from kombu.transport import pyamqp
class Own(pyamqp.Connection): pass
pyamqp.Transport.Connection = Own
import kombu
from kombu_pools_ext import pools
with pools.ConnectionPool(kombu.Connection({amqp_url!r}), limit=1).acquire(timeout=20) as lease:
    assert isinstance(lease.item.established, Own)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=3 * PATIENCE)


@pytest.mark.broker
@pytest.mark.parametrize(
    "owner, makes",
    [(amqp.connection, CountingTransport), (amqp.Connection, MakesAnother.Transport)],
    ids=["module", "class"],
)
def test_a_replaced_transport_is_used(
    make: MakePool, monkeypatch: pytest.MonkeyPatch, owner: Any, makes: Any
) -> None:
    monkeypatch.setattr(owner, "Transport", makes)
    pool = make()
    with pools.ProducerPool(pool).acquire(timeout=PATIENCE) as producer:
        transport = producer.connection.item.pooled_session.transport
        assert isinstance(transport, CountingTransport)
        assert isinstance(transport, TCPTransport)
        with pytest.raises(PublishReturned):
            producer.publish("x", routing_key=NOBODY, mandatory=True)
    assert is_whole(pool)


@pytest.mark.broker
def test_a_replaced_channel_class_is_used(make: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyamqp.Connection, "Channel", OwnChannel)
    with pools.ProducerPool(make()).acquire(timeout=PATIENCE) as producer:
        assert isinstance(producer.channel, OwnChannel)
        with pytest.raises(PublishReturned):
            producer.publish("x", routing_key=NOBODY, mandatory=True)
