"""The table of ``docs/reference/errors.md``: each situation is brought about with kombu's pools and with ours."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import amqp
import kombu
import kombu.exceptions
import pytest

from kombu_pools_ext import errors
from kombu_pools_ext.aliases import Pools
from kombu_pools_ext.engine import PoolOptions
from tests.broker.common import KOMBU, OURS, PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.broker.rig import port_of, through
from tests.broker.test_blocked import BLOCKED
from tests.broker.test_error_families import closing, families
from tests.conftest import ROOT
from tests.engine.fakes import in_thread
from tests.proxy import TO_CLIENT, Proxy

#: Seconds of a deadline that is meant to pass.
SOON = 0.3
#: Without these kombu tries for six seconds.
IMPATIENT = {"max_retries": 1, "interval_start": 0, "interval_step": 0}


@dataclass
class Stage:
    """Where a situation is brought about: with whose pools, on which broker."""

    pools: Any
    transport: str
    urls: dict[str, str]
    queue: str
    nowhere: int
    exits: ExitStack = field(default_factory=ExitStack)

    @property
    def ours(self) -> bool:
        return self.pools is OURS

    @property
    def url(self) -> str:
        return self.urls.get(self.transport, self.urls["memory"])

    def connection(self, url: str | None = None, **options: Any) -> kombu.Connection:
        """A connection that pools are looked up by; *options* are the transport's."""
        return kombu.Connection(url or self.url, transport_options=IMPATIENT | options)

    def producer(self, connection: Any = None, **options: Any) -> Any:
        """A leased producer that has published."""
        connection = connection or self.connection(**options)
        producer = self.pools.producers[connection].acquire(block=True, timeout=PATIENCE)
        self.exits.callback(_let_go, producer)
        producer.publish("warm", routing_key=self.queue)
        return producer

    def proxied(self, **options: Any) -> tuple[Proxy, Any]:
        """A proxy before the broker, and a leased producer by way of it."""
        proxy = self.exits.enter_context(Proxy("127.0.0.1", port_of(self.url)))
        producer = self.producer(self.connection(through(proxy, self.url), **options))
        # Nobody is to wait for an answer that the proxy holds.
        self.exits.callback(proxy.cut)
        return proxy, producer


def _let_go(producer: Any) -> None:
    with contextlib.suppress(Exception):
        producer.release()


CONFIRMS = {"confirm_publish": True}
SCENES: dict[str, Callable[[Stage], Any]] = {}


def scene(situation: str) -> Callable[[Callable[[Stage], Any]], Callable[[Stage], Any]]:
    def keep(play: Callable[[Stage], Any]) -> Callable[[Stage], Any]:
        SCENES[situation] = play
        return play

    return keep


# -- the pool ----------------------------------------------------------------------------------------------------------


@scene("all connections are lent, and the caller does not wait")
def _(stage: Stage) -> None:
    pool = stage.pools.connections[stage.connection()]
    pool.limit = 1
    with pool.acquire(block=True):
        pool.acquire()


@scene("all producers are lent, and the caller does not wait")
def _(stage: Stage) -> None:
    pool = stage.pools.producers[stage.connection()]
    pool.limit = 1
    with pool.acquire(block=True):
        pool.acquire()


@scene("all connections are lent, until the time-out")
def _(stage: Stage) -> None:
    pool = stage.pools.connections[stage.connection()]
    pool.limit = 1
    with pool.acquire(block=True):
        pool.acquire(block=True, timeout=SOON)


@scene("too many callers wait")
def _(stage: Stage) -> None:
    options = PoolOptions(max_waiting=1)
    pool = stage.pools.ConnectionPool(stage.connection(), limit=1, options=options)
    stage.exits.callback(pool.force_close_all)
    with pool.acquire(timeout=PATIENCE) as lent:
        with in_thread(lambda: pool.acquire(timeout=PATIENCE).release()):
            eventually(lambda: pool.stats().waiting)
            try:
                pool.acquire(timeout=PATIENCE)
            finally:
                lent.release()


@scene("the pool is closed")
def _(stage: Stage) -> None:
    pool = stage.pools.connections[stage.connection()]
    pool.acquire(block=True).release()
    pool.force_close_all()
    pool.acquire()


@scene("the pool is suspended")
def _(stage: Stage) -> None:
    pool = stage.pools.connections[stage.connection()]
    pool.suspend()
    try:
        pool.acquire()
    finally:
        pool.resume()


@scene("the pool is asked from within its own critical section")
def _(stage: Stage) -> None:
    pool = stage.pools.connections[stage.connection()]
    pool.engine.locked(pool.acquire)


@scene("a producer is used after its release")
def _(stage: Stage) -> None:
    producer = stage.producer()
    producer.release()
    producer.publish("x", routing_key=stage.queue)


@scene("there is no alias of that name")
def _(stage: Stage) -> None:
    stage.pools.connections["no-such-alias"].acquire()


@scene("the settings are wrong")
def _(stage: Stage) -> None:
    Pools(default={"url": stage.url, "limit": -1})


# -- the way to the broker ---------------------------------------------------------------------------------------------


@scene("there is no such transport")
def _(stage: Stage) -> None:
    with stage.pools.connections[stage.connection("nosuch://h//")].acquire() as connection:
        connection.connect()


def _connect(stage: Stage, connection: kombu.Connection, **wait: Any) -> None:
    with stage.pools.connections[connection].acquire(**wait) as lent:
        lent.connect()


def _publish(stage: Stage, connection: kombu.Connection, **wait: Any) -> None:
    with stage.pools.producers[connection].acquire(**wait) as producer:
        producer.publish("x", routing_key=stage.queue)


def _down(stage: Stage) -> kombu.Connection:
    scheme = stage.url.partition("://")[0]
    return stage.connection(f"{scheme}://guest:guest@127.0.0.1:{stage.nowhere}/0")


def _silent(stage: Stage) -> kombu.Connection:
    mute = stage.exits.enter_context(Proxy())
    return kombu.Connection(
        f"amqp://{mute.address}//", connect_timeout=SOON, transport_options=IMPATIENT
    )


@scene("the broker is down: a connection")
def _(stage: Stage) -> None:
    _connect(stage, _down(stage))


@scene("the broker is down: a producer")
def _(stage: Stage) -> None:
    _publish(stage, _down(stage))


@scene("the broker says nothing: a connection")
def _(stage: Stage) -> None:
    _connect(stage, _silent(stage), block=True, timeout=SOON)


@scene("the broker says nothing: a producer")
def _(stage: Stage) -> None:
    _publish(stage, _silent(stage), block=True, timeout=SOON)


@scene("the broker is down when a pool is reset")
def _(stage: Stage) -> None:
    proxy = stage.exits.enter_context(Proxy("127.0.0.1", port_of(stage.url)))
    aliases = Pools(default={"url": through(proxy, stage.url)})
    stage.exits.callback(aliases.connections["default"].force_close_all)
    aliases.connections["default"].acquire(timeout=PATIENCE).release()
    proxy.refuse()
    aliases.reset()


@scene("the password is wrong")
def _(stage: Stage) -> None:
    scheme, _, rest = stage.url.partition("://")
    _connect(stage, stage.connection(f"{scheme}://nobody:wrong@{rest.rpartition('@')[2]}"))


@scene("there is no such virtual host")
def _(stage: Stage) -> None:
    credentials = stage.url.partition("://")[2].rpartition("@")[0] or "guest:guest"
    where = f"127.0.0.1:{port_of(stage.url)}"
    _connect(stage, stage.connection(f"amqp://{credentials}@{where}/{stage.queue}"))


@scene("there is no such database")
def _(stage: Stage) -> None:
    _connect(stage, stage.connection(f"redis://127.0.0.1:{port_of(stage.url)}/9999"))


@scene("the broker takes no messages")
def _(stage: Stage) -> None:
    proxy, producer = stage.proxied(**CONFIRMS)
    if not stage.ours:
        proxy.hold(TO_CLIENT)
        proxy.alive[0].say(BLOCKED)
        producer.publish("x", routing_key=stage.queue, timeout=SOON)
        return
    pool = stage.pools.ConnectionPool(
        producer.connection.clone(), options=PoolOptions(check_after=0.0)
    )
    producers = stage.pools.ProducerPool(pool)
    stage.exits.callback(pool.force_close_all)
    producers.acquire(timeout=PATIENCE).release()
    proxy.links[-1].say(BLOCKED)

    def refusal() -> Exception | None:
        try:
            producers.acquire(timeout=SOON).release()
        except kombu.exceptions.LimitExceeded as error:
            return error
        return None

    raise eventually(refusal)


# -- a message ---------------------------------------------------------------------------------------------------------


@scene("the message was returned")
def _(stage: Stage) -> None:
    stage.producer(**CONFIRMS).publish("x", routing_key=stage.queue + "-nobody", mandatory=True)


@scene("the message was returned, and a callback hears of it")
def _(stage: Stage) -> None:
    heard: list[Any] = []
    producer = stage.producer(**CONFIRMS)
    producer.channel.events["basic_return"].add(lambda *args: heard.append(args))
    producer.publish("x", routing_key=stage.queue + "-nobody", mandatory=True)
    ((error, exchange, routing_key, message),) = heard
    assert isinstance(error, amqp.ChannelError)
    assert (error.reply_code, exchange, routing_key) == (312, "", stage.queue + "-nobody")
    assert message.body == "x"


@contextlib.contextmanager
def _full(stage: Stage) -> Iterator[str]:
    """A queue that has room for nothing."""
    arguments = {"x-max-length": 0, "x-overflow": "reject-publish"}
    queue = kombu.Queue(f"{stage.queue}-full", durable=False, queue_arguments=arguments)
    with kombu.Connection(stage.url) as connection:
        bound = queue(connection.default_channel)
        bound.declare()
        try:
            yield queue.name
        finally:
            bound.delete()


@scene("the message was refused")
def _(stage: Stage) -> None:
    if stage.transport == "AMQP":
        with _full(stage) as full:
            stage.producer(**CONFIRMS).publish("x", routing_key=full)
    producer = stage.producer()
    with kombu.Connection(stage.url) as connection:
        connection.default_channel.client.set(stage.queue + "-text", "no list")
        try:
            producer.publish("x", routing_key=stage.queue + "-text")
        finally:
            connection.default_channel.client.delete(stage.queue + "-text")


@scene("the exchange is not there")
def _(stage: Stage) -> None:
    stage.producer(**CONFIRMS).publish("x", exchange=stage.queue, routing_key="x")


@scene("the connection breaks before the confirm")
def _(stage: Stage) -> None:
    proxy, producer = stage.proxied(**CONFIRMS)
    proxy.half_close(TO_CLIENT)
    producer.publish("x", routing_key=stage.queue)


@scene("the broker closes the connection before the confirm")
def _(stage: Stage) -> None:
    proxy, producer = stage.proxied(**CONFIRMS)
    proxy.hold(TO_CLIENT)
    proxy.alive[0].say(closing(320))
    producer.publish("x", routing_key=stage.queue)


@scene("the confirm does not come in time")
def _(stage: Stage) -> None:
    proxy, producer = stage.proxied(**CONFIRMS)
    proxy.hold(TO_CLIENT)
    producer.publish("x", routing_key=stage.queue, timeout=SOON)


@scene("the answer does not come in time")
def _(stage: Stage) -> None:
    proxy, producer = stage.proxied(socket_timeout=SOON)
    proxy.hold(TO_CLIENT)
    producer.publish("x", routing_key=stage.queue)


@scene("the answer does not come in time, with `retry=True`")
def _(stage: Stage) -> None:
    proxy, producer = stage.proxied(socket_timeout=SOON)
    proxy.hold(TO_CLIENT)
    producer.publish("x", routing_key=stage.queue, retry=True, retry_policy={"max_retries": 0})


@scene("the broker goes down before the confirm, with `retry=True`")
def _(stage: Stage) -> None:
    proxy, producer = stage.proxied(**CONFIRMS)
    proxy.half_close(TO_CLIENT)
    proxy.refuse()
    # kombu has no bound for all of it, and the pool goes on until it.
    bound = {"timeout": 2.0} if stage.ours else {}
    producer.publish("x", routing_key=stage.queue, retry=True, retry_policy=IMPATIENT, **bound)


@scene("the connection broke, and no try succeeds, with `retry=True`")
def _(stage: Stage) -> None:
    proxy, producer = stage.proxied(**CONFIRMS)
    proxy.cut()
    producer.channel.connection.collect()
    producer.publish("x", routing_key=stage.queue, retry=True, retry_policy={"max_retries": 0})


@scene("the connection broke, without confirms")
def _(stage: Stage) -> None:
    proxy, producer = stage.proxied()
    proxy.cut()

    def publish() -> None:
        producer.publish("x", routing_key=stage.queue)

    # The first ones may be gone before the end is seen.
    eventually(publish)


def _batch(producer: Any, *keys: str) -> None:
    # Before 5.7 kombu's producers have none.
    with producer.batch() if hasattr(producer, "batch") else nullcontext():
        for key in keys:
            producer.publish("x", routing_key=key, mandatory=key.endswith("-nobody"))


@scene("a message of a batch was returned")
def _(stage: Stage) -> None:
    _batch(stage.producer(**CONFIRMS), stage.queue, stage.queue + "-nobody", stage.queue)


@scene("a message of a batch was refused")
def _(stage: Stage) -> None:
    with _full(stage) as full:
        _batch(stage.producer(**CONFIRMS), stage.queue, full, stage.queue)


@scene("the connection breaks within a batch")
def _(stage: Stage) -> None:
    proxy, producer = stage.proxied(**CONFIRMS)
    proxy.half_close(TO_CLIENT)
    _batch(producer, *[stage.queue] * 3)


# -- the table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of the table, for one transport."""

    situation: str
    transport: str
    kombus: str
    ours: str
    families: frozenset[str]


def _rows() -> Iterator[Row]:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    table = page.partition("| situation |")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        situation, transports, kombus, ours, found = (
            cell.strip() for cell in line.strip("|").split(" | ")
        )
        named = frozenset(re.findall("`(.+?)`", found))
        for transport in transports.split(", "):
            yield Row(situation, transport, kombus.strip("`"), ours.strip("`"), named)


ROWS = list(_rows())
#: By transport, how a test is marked that needs its broker.
MARKS = {"AMQP": pytest.mark.broker, "Redis": pytest.mark.redis}


def _class(name: str) -> type[BaseException]:
    """The class that the table names."""
    module, _, short = name.rpartition(".")
    where: Any = importlib.import_module(module) if module else builtins
    found: type[BaseException] = getattr(errors, short, None) if not module else None  # type: ignore[assignment]
    return found or getattr(where, short)


@pytest.fixture
def urls(request: pytest.FixtureRequest, memory_url: str) -> dict[str, str]:
    """The URL of the broker that a row is about."""
    row: Row = request.getfixturevalue("row")
    name = row.transport.lower()
    found = {"memory": memory_url}
    if name in ("amqp", "redis"):
        found[row.transport] = request.getfixturevalue(f"{name}_url")
    return found


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=MARKS.get(row.transport, ())) for row in ROWS],
    ids=lambda row: f"{row.transport}: {row.situation}",
)
def test_an_error_is_where_kombus_is(
    row: Row, urls: dict[str, str], inbox: Callable[[str], Inbox], queue: str, nowhere: int
) -> None:
    def raised(pools: Any) -> BaseException | None:
        with ExitStack() as exits:
            stage = Stage(pools, row.transport, urls, queue, nowhere, exits)
            if row.transport == "AMQP":
                inbox(stage.url)
            try:
                SCENES[row.situation](stage)
            except Exception as error:
                return error
            return None

    connection = kombu.Connection(urls.get(row.transport, urls["memory"]))
    ours = raised(OURS)
    if row.ours == "–":
        assert ours is None
    else:
        assert isinstance(ours, _class(row.ours))
        assert families(connection, ours) == row.families
    # What kombu does not notice may still be something it has no word for.
    if row.kombus == "–":
        return
    kombus = raised(KOMBU)
    assert isinstance(kombus, _class(row.kombus))
    assert isinstance(ours, _class(row.kombus))
    assert families(connection, kombus) <= families(connection, ours)
    for kind in (OSError, TimeoutError, kombu.exceptions.OperationalError):
        assert isinstance(ours, kind) or not isinstance(kombus, kind)
    for name in ("reply_code", "reply_text", "method_sig", "method_name", "method", "code"):
        if hasattr(kombus, name):
            assert getattr(ours, name) == getattr(kombus, name)


def test_the_table_has_every_error_and_every_situation() -> None:
    assert {row.situation for row in ROWS} == set(SCENES)
    classes = {
        name
        for name in errors.__all__
        if isinstance(getattr(errors, name), type) and issubclass(getattr(errors, name), Exception)
    }
    # One that is never raised itself, one of another matter, and a warning.
    others = {"PoolError", "ControlError", "BlockingInEventLoop"}
    assert classes - {row.ours for row in ROWS} == others
