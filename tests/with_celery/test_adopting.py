"""An adopted application in one process: what goes over the alias, when it may be adopted, and what is refused."""

from __future__ import annotations

import asyncio
import gc
import pickle
import statistics
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import celery
import kombu
import kombu.pools
import pytest
from celery import chain, group
from celery.app.amqp import AMQP
from celery.app.defaults import NAMESPACES
from celery.exceptions import OperationalError
from kombu.exceptions import LimitExceeded

from kombu_pools_ext import Pools, configure
from kombu_pools_ext.contrib.celery import CannotAdopt, adopt, adoption_of, wrong_with
from kombu_pools_ext.contrib.celery.task_producer import TaskProducer
from kombu_pools_ext.errors import BlockingInEventLoop, PublishReturned, UnknownAlias
from tests.broker.common import PATIENCE, eventually
from tests.broker.rig import port_of, through
from tests.proxy import Proxy
from tests.with_celery.conftest import MakePools, tasks_of

MakeApp = Callable[..., celery.Celery]


#: Whether this release of Celery has a time-out for its pools.
HAS_TIME_OUT = "pool_acquire_timeout" in NAMESPACES["broker"]


def acquires(pools: Pools) -> int:
    """How many leases there were."""
    return pools.connections["default"].stats().acquires


# -- what goes over the alias ------------------------------------------------------------------------------------------


def test_a_task_goes_over_the_alias(pools: Pools, make_app: MakeApp, amqp_url: str) -> None:
    app = make_app(amqp_url, pools)
    before = len(kombu.pools.connections)
    sent = app.tasks["add"].delay(3, b=4)
    (message,) = tasks_of(app, 1)
    assert message.payload[:2] == [[3], {"b": 4}]
    assert message.headers["id"] == message.properties["correlation_id"] == sent.id
    assert message.properties["message_id"]
    assert message.properties["delivery_mode"] == 2
    assert acquires(pools) >= 1
    assert len(kombu.pools.connections) == before


def test_a_task_is_the_same_as_one_of_celerys_own_publishing(
    pools: Pools, make_app: MakeApp, amqp_url: str
) -> None:
    """But for the ``message_id``, which consumers may know a copy by."""

    def sent_by(app: celery.Celery) -> dict[str, Any]:
        app.tasks["add"].apply_async(
            (1,), task_id="one", priority=3, expires=60, headers={"own": [1]}, no_property=1
        )
        (message,) = tasks_of(app, 1)
        headers = {**message.headers, "expires": bool(message.headers["expires"]), "origin": None}
        properties = {
            name: value
            for name, value in message.properties.items()
            if name not in ("message_id", "reply_to", "application_headers", "delivery_info")
        }
        return {
            "body": message.body,
            "headers": headers,
            "properties": properties,
            "type": message.content_type,
            "encoding": message.content_encoding,
        }

    assert sent_by(make_app(amqp_url, pools)) == sent_by(make_app(amqp_url))


@pytest.mark.parametrize("protocol", [1, 2])
def test_every_way_to_send_goes_over_the_alias(
    protocol: int, pools: Pools, make_app: MakeApp, amqp_url: str
) -> None:
    app = make_app(amqp_url, pools, task_protocol=protocol)
    add = app.tasks["add"]
    before = len(kombu.pools.connections)
    app.send_task("add", (1,))
    add.apply_async((2,), link=add.s(1), link_error=add.s(), countdown=60)
    group(add.s(n) for n in range(3)).apply_async()
    chain(add.s(1), add.s(2)).apply_async()
    add.signature((4,), app=app).delay()
    assert len(tasks_of(app, 7)) == 7
    assert acquires(pools) >= 1
    assert len(kombu.pools.connections) == before


def test_the_shared_connection_takes_all_but_the_first_task_of_a_queue(
    make_pools: MakePools, make_app: MakeApp, amqp_url: str
) -> None:
    pools = make_pools(amqp_url, PUBLISH_OVER="shared")
    app = make_app(amqp_url, pools, task_send_sent_event=True)
    add = app.tasks["add"]
    for number in range(3):
        add.delay(number)
    publisher = pools.producers["default"].shared_road.publisher
    # Each task, and the event that it was sent.
    assert publisher.numbers.of("")
    assert publisher.connections >= 1
    before = pools.producers["default"].engine.stats().acquires

    def send() -> None:
        for number in range(50):
            add.delay(number)

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    # A lease serves many messages.
    assert pools.producers["default"].engine.stats().acquires - before < 400
    assert len(tasks_of(app, 403)) == 403


def test_events_and_remote_control_go_over_the_alias(
    pools: Pools, make_app: MakeApp, amqp_url: str
) -> None:
    app = make_app(amqp_url, pools)
    before = len(kombu.pools.connections)
    with kombu.Connection(amqp_url) as connection:
        events = kombu.Exchange(app.conf.event_exchange, "topic")
        listening = kombu.Queue("", events, routing_key="#", exclusive=True)
        bound = listening(connection.default_channel)
        bound.declare()
        with app.events.default_dispatcher() as dispatcher:
            dispatcher.send("task-custom", uuid="one")
        assert eventually(lambda: bound.get(no_ack=True)).payload["type"] == "task-custom"
    node = app.control.mailbox.Node("worker", state=None, handlers={"ping": lambda state: "pong"})
    with kombu.Connection(amqp_url) as connection:
        node.channel = connection.channel()
        with node.listen():
            answers: list[Any] = []
            asking = threading.Thread(
                target=lambda: answers.extend(app.control.ping(timeout=PATIENCE, limit=1))
            )
            asking.start()
            while asking.is_alive():
                try:
                    connection.drain_events(timeout=0.1)
                except TimeoutError:
                    pass
            asking.join()
    assert answers == [{"worker": "pong"}]
    assert len(kombu.pools.connections) == before
    assert acquires(pools) >= 3


def test_a_message_that_is_no_task_comes_back_to_nobody(
    make_pools: MakePools, make_app: MakeApp, amqp_url: str
) -> None:
    """A result whose client has gone, and an event that nobody listens to."""
    pools = make_pools(amqp_url, MANDATORY=True)
    app = make_app(amqp_url, pools)
    with app.producer_or_acquire() as producer:
        producer.publish({"result": 1}, exchange="", routing_key="gone-with-its-client")
        producer.publish({"own": 1}, routing_key="gone", correlation_id="1", retry=True)
        with pytest.raises(PublishReturned):
            producer.publish({"own": 1}, exchange="", routing_key="gone", mandatory=True)
    with pytest.raises(PublishReturned):
        app.send_task("add", exchange="", routing_key="gone", queue=kombu.Queue("gone"), declare=[])


def test_a_queue_that_was_deleted_is_declared_again(
    pools: Pools, make_app: MakeApp, amqp_url: str
) -> None:
    app = make_app(amqp_url, pools)
    app.tasks["add"].delay()
    with kombu.Connection(amqp_url) as connection:
        kombu.Queue(app.main)(connection.default_channel).delete()
    app.tasks["add"].delay(5)
    (message,) = tasks_of(app, 1)
    assert message.payload[0] == [5]


def test_a_producer_of_the_application_is_kombus_in_all_else(
    pools: Pools, make_app: MakeApp, amqp_url: str
) -> None:
    app = make_app(amqp_url, pools)
    queue = app.amqp.queues[app.main]
    with app.producer_or_acquire() as producer:
        assert isinstance(producer, kombu.Producer)
        assert isinstance(producer, TaskProducer)
        connection = producer.connection
        assert isinstance(connection, kombu.Connection)
        # Nothing is lent for that.
        assert connection.as_uri()
        assert connection.recoverable_connection_errors
        assert producer.serializer is None
        assert acquires(pools) == 0
        queue(producer.channel).declare()
        assert producer.connection.connected
        assert connection.connected
        assert acquires(pools) == 1
        producer.routing_key = app.main
        producer.serializer = "yaml" if "yaml" in kombu.serialization.registry._decoders else "json"
        producer.publish("on the lease", retry=True)
        with connection.channel() as channel:
            channel.queue_purge
    with pytest.raises(RuntimeError, match="released"):
        producer.channel
    (message,) = tasks_of(app, 1)
    assert message.payload == "on the lease"
    assert pools.connections["default"].stats().lent == 0


def test_a_connection_of_the_application_is_one_of_the_alias(
    pools: Pools, make_app: MakeApp, amqp_url: str
) -> None:
    app = make_app(amqp_url, pools)
    with app.connection_or_acquire() as connection:
        assert pools.connections["default"].stats().lent == 1
        assert connection.default_channel.is_open
    with app.pool.acquire_channel(block=True) as (connection, channel):
        assert channel is connection.default_channel
    assert app.pool.limit == app.producer_pool.limit == pools.connections["default"].limit
    assert app.control.purge() == 0


def test_arguments_that_publish_refuses_go_as_with_kombu(
    make_pools: MakePools, make_app: MakeApp, redis_url: str
) -> None:
    """Redis carries headers that AMQP does not."""
    app = make_app(redis_url, make_pools(redis_url))
    app.tasks["add"].apply_async(headers={"n": 2**70})
    (message,) = tasks_of(app, 1)
    assert message.headers["n"] == 2**70


def test_a_task_from_a_coroutine_warns_with_the_line_of_the_application(
    pools: Pools, make_app: MakeApp, amqp_url: str
) -> None:
    app = make_app(amqp_url, pools)
    add = app.tasks["add"]

    async def send() -> None:
        with pytest.warns(BlockingInEventLoop) as caught:
            add.delay()
        assert {one.filename for one in caught} == {__file__}
        await asyncio.to_thread(add.delay)

    asyncio.run(send())
    assert len(tasks_of(app, 2)) == 2


# -- retries and errors ------------------------------------------------------------------------------------------------


def test_an_exhausted_pool_is_celerys_exhausted_error(
    make_pools: MakePools, make_app: MakeApp, amqp_url: str
) -> None:
    pools = make_pools(amqp_url, LIMIT=1, ACQUIRE_TIMEOUT=0.1)
    app = make_app(amqp_url, pools)
    with pools.producers["default"].acquire(timeout=PATIENCE):
        began = time.monotonic()
        with pytest.raises(OperationalError) as caught:
            app.tasks["add"].delay()
        assert isinstance(caught.value.__cause__, LimitExceeded)
        # Of Celery's own making, or before it has such an error, kombu's.
        with pytest.raises(OperationalError if HAS_TIME_OUT else LimitExceeded):
            app.control.ping()
        assert time.monotonic() - began < 4
    with pytest.raises(OperationalError, match="alias 'default'"):
        with pools.producers["default"].acquire(timeout=PATIENCE):
            app.tasks["add"].delay()
    app.tasks["add"].delay()
    assert len(tasks_of(app, 1)) == 1


@pytest.mark.skipif(not HAS_TIME_OUT, reason="this Celery has no time-out for its pools")
def test_celerys_own_time_out_is_in_force_where_it_is_set(
    make_pools: MakePools, make_app: MakeApp, amqp_url: str
) -> None:
    pools = make_pools(amqp_url, LIMIT=1, ACQUIRE_TIMEOUT=None)
    app = make_app(amqp_url, pools, broker_pool_acquire_timeout=0.1)
    with pools.producers["default"].acquire(timeout=PATIENCE):
        with pytest.raises(OperationalError):
            app.tasks["add"].delay()


@pytest.mark.parametrize(
    "kwargs, expected",
    [
        ({}, None),
        ({"retry": True, "retry_policy": {"max_retries": 3}}, None),
        ({"retry": False}, False),
    ],
)
def test_retry_is_the_aliass_unless_a_call_says_otherwise(kwargs: Any, expected: Any) -> None:
    class Road:
        using, default_policy = "default", {"max_retries": 3}

        def publish(self, body: Any, kwargs: dict[str, Any], timeout: Any) -> None:
            self.kwargs = kwargs

    road: Any = Road()
    TaskProducer(road).publish(1, routing_key="q", **kwargs)
    assert road.kwargs.get("retry") is expected
    assert "retry_policy" not in road.kwargs


def test_a_retry_policy_of_a_call_is_in_force(
    make_pools: MakePools, make_app: MakeApp, nowhere: int
) -> None:
    url = f"amqp://localhost:{nowhere}//"
    pools = make_pools(url, ACQUIRE_TIMEOUT=1.0, RETRY=None)
    app = make_app(url, pools)
    heard: list[float] = []
    policy = {
        "max_retries": 2,
        "interval_start": 0.01,
        "interval_step": 0.01,
        "errback": lambda error, pause: heard.append(pause),
    }
    with pytest.raises(OperationalError):
        app.tasks["add"].apply_async(retry=True, retry_policy=policy)
    assert heard == pytest.approx([0.01, 0.02])


@pytest.mark.timing
@pytest.mark.parametrize("road", ["leased", "shared"])
@pytest.mark.parametrize("silent", [False, True])
def test_the_first_call_of_an_outage_waits_and_no_later_one_does(
    road: str, silent: bool, make_pools: MakePools, make_app: MakeApp, amqp_url: str
) -> None:
    with Proxy("127.0.0.1", port_of(amqp_url)) as proxy:
        if silent:
            proxy.blackhole()
        else:
            proxy.refuse()
        url = through(proxy, amqp_url)
        pools = make_pools(url, ACQUIRE_TIMEOUT=0.5, CONNECT_TIMEOUT=1, PUBLISH_OVER=road)
        app = make_app(url, pools)
        took = []
        for number in range(40):
            began = time.monotonic()
            with pytest.raises(OperationalError) as caught:
                app.control.ping() if number == 20 else app.tasks["add"].delay()
            took.append(time.monotonic() - began)
            assert proxy.address in str(caught.value)
            assert not isinstance(caught.value, LimitExceeded) or number != 20
        # As the broker's last word: refused, or no answer yet.
        assert isinstance(caught.value.__cause__, Exception) or silent
        assert 0.4 < took[0] < 2
        assert statistics.median(took[1:]) < 0.01
        proxy.heal()
        eventually(lambda: sends(app))
        assert len(tasks_of(app, 1)) >= 1


def sends(app: celery.Celery) -> bool:
    """Whether a task can be sent."""
    try:
        app.tasks["add"].delay()
    except OperationalError:
        return False
    return True


# -- when it may be adopted --------------------------------------------------------------------------------------------


def test_before_the_application_is_configured(
    make_pools: MakePools, amqp_url: str, make_app: MakeApp
) -> None:
    pools = make_pools(amqp_url)
    app = celery.Celery("unconfigured", set_as_current=False)
    adopt(app, pools=pools)
    assert not app.configured
    assert not app.finalized
    app.conf.broker_url = amqp_url
    queue = make_app(amqp_url).main
    app.send_task("add", queue=queue)
    assert acquires(pools) == 1
    other = make_app(amqp_url)
    assert len(tasks_of(other, 1, queue)) == 1
    app.close()


def test_after_it_has_sent_tasks(make_pools: MakePools, make_app: MakeApp, amqp_url: str) -> None:
    pools = make_pools(amqp_url)
    app = make_app(amqp_url)
    app.amqp.queues.add(kombu.Queue("own", routing_key=app.main))
    app.tasks["add"].delay(1)
    mailbox_pool = app.control.mailbox.producer_pool
    amqp = app.amqp
    adopt(app, pools=pools)
    assert app.amqp is amqp
    assert "own" in app.amqp.queues
    assert app.control.mailbox.producer_pool is app.producer_pool is not mailbox_pool
    app.tasks["add"].delay(2)
    assert acquires(pools) == 1
    assert [one.payload[0] for one in tasks_of(app, 2)] == [[1], [2]]


def test_twice_is_once_and_two_aliases_are_an_error(
    make_pools: MakePools, make_app: MakeApp, amqp_url: str
) -> None:
    pools = make_pools(amqp_url)
    app = make_app(amqp_url)
    assert adoption_of(app) is None
    adopt(app, pools=pools)
    before = app.amqp_cls, app.pool, app.producer_pool
    adopt(app, pools=pools)
    assert (app.amqp_cls, app.pool, app.producer_pool) == before
    assert adoption_of(app) == "default"
    with pytest.raises(CannotAdopt, match="publishes over the alias 'default' already"):
        adopt(app, "other", pools=pools)
    with pytest.raises(CannotAdopt, match="already"):
        adopt(app, pools=make_pools(amqp_url))


def test_two_applications_have_an_alias_each(
    make_pools: MakePools, make_app: MakeApp, amqp_url: str, redis_url: str
) -> None:
    one, other = make_pools(amqp_url), make_pools(redis_url)
    first, second, third = make_app(amqp_url, one), make_app(redis_url, other), make_app(amqp_url)
    for app in (first, second, third):
        app.tasks["add"].delay()
    assert (acquires(one), acquires(other)) == (1, 1)
    for app in (first, second, third):
        assert len(tasks_of(app, 1)) == 1


def test_the_pools_of_configure_are_the_default(make_app: MakeApp, amqp_url: str) -> None:
    app = make_app(amqp_url)
    configure(default={"url": amqp_url, "connection_name": "configured"})
    gc.collect()
    adopt(app)
    app.tasks["add"].delay()
    assert len(tasks_of(app, 1)) == 1
    configure(other={"url": amqp_url})
    with pytest.raises(UnknownAlias, match="default"):
        app.tasks["add"].delay()


def test_a_proxy_stands_for_its_application(
    make_pools: MakePools, make_app: MakeApp, amqp_url: str
) -> None:
    app = make_app(amqp_url)
    adopt(celery.local.Proxy(lambda: app), pools=make_pools(amqp_url))
    assert adoption_of(app) == "default"
    assert app.amqp_cls.adoption._app is app


def test_a_stranger_that_resets_kombus_pools_changes_nothing(
    pools: Pools, make_app: MakeApp, amqp_url: str
) -> None:
    app = make_app(amqp_url, pools)
    app.tasks["add"].delay()
    opened = pools.connections["default"].stats().opened
    kombu.pools.reset()
    app.tasks["add"].delay()
    assert pools.connections["default"].stats().opened == opened
    assert len(tasks_of(app, 2)) == 2


def test_a_reload_of_the_settings_is_in_force(
    make_pools: MakePools, make_app: MakeApp, amqp_url: str
) -> None:
    limits = iter([1, 2])
    pools = Pools(lambda: {"default": {"URL": amqp_url, "LIMIT": next(limits)}})
    app = make_app(amqp_url, pools)
    app.tasks["add"].delay()
    assert app.pool.limit == 1
    pools.reload()
    app.tasks["add"].delay()
    assert app.pool.limit == app.producer_pool.limit == 2
    assert len(tasks_of(app, 2)) == 2


def test_an_application_that_is_pickled_is_adopted_where_it_is_unpickled(amqp_url: str) -> None:
    configure(default={"url": amqp_url})
    app = celery.Celery("pickled", broker=amqp_url, set_as_current=False)
    adopt(app)
    copy = pickle.loads(pickle.dumps(app))
    assert isinstance(copy.producer_pool.acquire(), TaskProducer)
    assert copy.pool is not app.pool
    assert "alias 'default'" in repr(copy.pool)
    copy.close()
    app.close()


def test_an_application_that_has_a_pools_object_says_how_it_could_be_pickled(
    make_pools: MakePools, make_app: MakeApp, amqp_url: str
) -> None:
    app = make_app(amqp_url, make_pools(amqp_url))
    with pytest.raises(pickle.PicklingError, match="pools=find_pools"):
        pickle.dumps(app)


@pytest.mark.parametrize("limit", [0, None])
def test_broker_pool_limit_has_no_effect(
    limit: Any, make_pools: MakePools, make_app: MakeApp, amqp_url: str
) -> None:
    pools = make_pools(amqp_url, LIMIT=3)
    app = make_app(amqp_url, pools, broker_pool_limit=limit)
    for _ in range(2):
        app.tasks["add"].delay()
    assert app.pool.limit == 3
    assert pools.connections["default"].stats().opened == 1
    assert len(tasks_of(app, 2)) == 2


def test_the_end_of_an_application_is_not_that_of_the_alias(
    pools: Pools, make_app: MakeApp, amqp_url: str
) -> None:
    app = make_app(amqp_url, pools)
    app.tasks["add"].delay(1)
    app.close()
    assert pools.connections["default"].stats().size == 1
    # An application may be used after its end, as with Celery's own pools.
    app.tasks["add"].delay(2)
    assert type(app.pool).__name__ == "ConnectionsFace"
    assert [one.payload[0][0] for one in tasks_of(app, 2)] == [1, 2]
    assert pools.connections["default"].stats().opened == 1


def test_eager_tasks_open_nothing(make_pools: MakePools, make_app: MakeApp, nowhere: int) -> None:
    url = f"amqp://localhost:{nowhere}//"
    pools = make_pools(url)
    app = make_app(url, pools, task_always_eager=True)
    assert app.tasks["add"].delay(3, 4).get() == 7
    assert acquires(pools) == 0


class OwnAMQP(AMQP):
    """An application's own class."""

    autoexchange = staticmethod(lambda name: None)


class OwnPools(AMQP):
    """One with pools of its own."""

    producer_pool = property(lambda self: None)


@pytest.mark.parametrize("amqp", [OwnAMQP, f"{__name__}:OwnAMQP"])
def test_a_class_of_the_applications_own_is_kept(
    amqp: Any, make_pools: MakePools, make_app: MakeApp, amqp_url: str
) -> None:
    class Own(celery.Celery):
        amqp_cls = amqp if isinstance(amqp, type) else OwnAMQP

    app = make_app(amqp_url, make_pools(amqp_url), cls=Own)
    assert isinstance(app.amqp, OwnAMQP)
    app.tasks["add"].delay()
    assert len(tasks_of(app, 1)) == 1


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_pools_of_the_applications_own_are_refused(
    make_pools: MakePools, make_app: MakeApp, amqp_url: str
) -> None:
    class Own(celery.Celery):
        amqp_cls = OwnPools

    app = make_app(amqp_url, cls=Own)
    with pytest.raises(CannotAdopt, match="producer_pool of its own"):
        adopt(app, pools=make_pools(amqp_url))
    assert adoption_of(app) is None
    assert app.amqp_cls is OwnPools


def test_a_celery_without_the_places_is_refused_with_all_that_is_missing(
    make_pools: MakePools, amqp_url: str
) -> None:
    class Own(celery.Celery):
        pool = property(lambda self: None)  # type: ignore[assignment]

        def _ensure_after_fork(self) -> None:
            """Not reached."""

    app = Own(set_as_current=False)
    app._ensure_after_fork = None
    app.on_after_fork = None
    with pytest.raises(CannotAdopt) as caught:
        adopt(app, pools=make_pools(amqp_url))
    for name in ("Celery.pool", "Celery._ensure_after_fork", "Celery.on_after_fork"):
        assert name in str(caught.value)
    assert "AMQP.producer_pool" not in str(caught.value)
    with pytest.raises(TypeError, match="not str"):
        adopt("app")  # type: ignore[arg-type]
    app.close()


def test_another_broker_is_refused_before_the_first_task(
    make_pools: MakePools, make_app: MakeApp, amqp_url: str, redis_url: str
) -> None:
    pools = make_pools(amqp_url)
    configured = make_app(redis_url)
    assert configured.conf.broker_url
    assert configured.configured
    with pytest.raises(CannotAdopt, match="no worker of the app looks for them"):
        adopt(configured, pools=pools)
    assert adoption_of(configured) is None
    later = celery.Celery(broker=redis_url, set_as_current=False)
    adopt(later, pools=pools)
    assert "broker_url" in str(wrong_with(later))
    for use in (
        lambda: later.send_task("add"),
        lambda: later.amqp.queues,  # as a worker begins
        lambda: later.producer_pool.acquire(),
        lambda: later.pool.acquire(),
    ):
        with pytest.raises(CannotAdopt, match="broker_url"):
            use()
    assert wrong_with(make_app(redis_url)) is None
    later.close()


@pytest.mark.parametrize(
    "theirs, ours, same",
    [
        ("amqp://guest:guest@localhost:5672//", "amqp://guest:guest@127.0.0.1//", True),
        ("pyamqp://shop:x@mq/shop", "amqp://other:y@MQ:5672/shop", True),
        ("amqps://mq/shop", "amqp://mq:5671/shop", True),
        ("amqp://mq/shop", "amqp://mq/other", False),
        ("amqp://mq:5673//", "amqp://mq//", False),
        ("amqp://a//;amqp://b//", ["amqp://b//", "amqp://c//"], True),
        ("amqp://a//;amqp://b//", "amqp://c//", False),
        ("redis://cache", "redis://cache:6379/0", True),
        ("redis://cache/1", "redis://cache/0", False),
        ("redis://localhost", "amqp://localhost", False),
        ("memory://", "memory://else", True),
    ],
)
def test_brokers_are_compared_by_their_address(theirs: str, ours: Any, same: bool) -> None:
    app = celery.Celery(broker=theirs, set_as_current=False)
    adopt(app, pools=Pools({"default": {"URL": ours}}))
    assert (wrong_with(app) is None) is same
    app.close()


@pytest.mark.parametrize(
    "theirs, ours, named",
    [
        ({"global_keyprefix": "shop:"}, {}, "global_keyprefix"),
        ({"priority_steps": [0, 5]}, {"priority_steps": [0, 5]}, None),
        ({"visibility_timeout": 60}, {"socket_timeout": 3}, None),
    ],
)
def test_options_that_say_where_tasks_are_stored_must_be_the_same(
    theirs: Any, ours: Any, named: str | None
) -> None:
    app = celery.Celery(broker="redis://localhost", set_as_current=False)
    app.conf.broker_transport_options = theirs
    assert app.conf.broker_url
    assert app.configured
    pools = Pools({"default": {"URL": "redis://localhost", "TRANSPORT_OPTIONS": ours}})
    if named is None:
        adopt(app, pools=pools)
        assert wrong_with(app) is None
    else:
        with pytest.raises(CannotAdopt, match=f"transport options '{named}'"):
            adopt(app, pools=pools)
    app.close()


@pytest.mark.skipif(
    find_spec("celery.utils.quorum_queues") is None, reason="this Celery knows no quorum queues"
)
def test_quorum_queues_with_native_delayed_delivery(
    pools: Pools, make_app: MakeApp, amqp_url: str
) -> None:
    app = make_app(amqp_url)
    topic = kombu.Exchange(app.main, "topic")
    app.conf.task_queues = (
        kombu.Queue(
            app.main, topic, routing_key=app.main, queue_arguments={"x-queue-type": "quorum"}
        ),
    )
    app.conf.worker_detect_quorum_queues = True
    adopt(app, pools=pools)
    with kombu.Connection(amqp_url) as connection:
        delayed = kombu.Exchange("celery_delayed_27", "topic")
        queue = kombu.Queue(f"{app.main}-delayed", delayed, routing_key=f"#.{app.main}")
        bound = queue(connection.default_channel)
        bound.declare()
        app.tasks["add"].apply_async((1,), countdown=3)
        message = bound.get(no_ack=True)
        assert message.payload[0] == [1]
        assert message.delivery_info["routing_key"].endswith(f"1.1.{app.main}")
        bound.delete()


# -- the core ----------------------------------------------------------------------------------------------------------


def test_celery_is_imported_by_its_own_part_alone() -> None:
    import subprocess
    import sys

    code = "import sys, kombu_pools_ext, django_app, flask_ext; assert 'celery' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
