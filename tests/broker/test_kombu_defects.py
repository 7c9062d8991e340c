"""What goes wrong with kombu's pools, and must not with ours.

Where it is cheap a test runs on kombu's pools too, as one that must fail: the day it passes, kombu has mended it.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import kombu.connection
import pytest
from amqp.exceptions import AMQPError, MessageNacked
from kombu import Connection
from kombu.exceptions import ConnectionLimitExceeded, LimitExceeded, OperationalError

from kombu_pools_ext import configure
from kombu_pools_ext.engine import PoolOptions

from ..proxy import TO_CLIENT, TO_SERVER, Proxy
from .common import KOMBU, OURS, PATIENCE, Hangs, eventually, patience, within, xfail_on_kombu
from .conftest import Inbox
from .rig import confirming, through

MakeInbox = Callable[[str], Inbox]

SECRET = "s3cr3t-w0rd"


# -- what a pool is looked up by ---------------------------------------------------------------------------------------


@xfail_on_kombu("a URL has no Pool()", AttributeError)
@pytest.mark.parametrize("group", ["connections", "producers"])
def test_a_url_is_enough(pools: ModuleType, memory_url: str, group: str) -> None:
    pools_by = getattr(pools, group)
    assert pools_by[memory_url] is pools_by[Connection(memory_url)]
    with pools_by[memory_url].acquire():
        pass


DIFFERENT = {
    "ssl": {"ssl": True},
    "ssl options": {"ssl": {"cert_reqs": ssl.CERT_REQUIRED}},
    "heartbeat": {"heartbeat": 30},
    "connect_timeout": {"connect_timeout": 1},
    "login_method": {"login_method": "EXTERNAL"},
    "alternates": {"alternates": ["amqp://a//", "amqp://b//"]},
    "failover_strategy": {"failover_strategy": "shuffle"},
}


@xfail_on_kombu("its key leaves this out", AssertionError)
@pytest.mark.parametrize("what", DIFFERENT)
def test_connections_that_differ_do_not_share_a_pool(pools: ModuleType, what: str) -> None:
    plain, other = Connection("amqp://a//"), Connection("amqp://a//", **DIFFERENT[what])
    assert pools.connections[plain] is not pools.connections[other]
    assert pools.producers[plain] is not pools.producers[other]


def test_failover_lists_in_another_order_do_not_share_a_pool() -> None:
    one, two = "amqp://a//", "amqp://b//"
    assert OURS.connections[[one, two]] is OURS.connections[f"{one};{two}"]
    assert OURS.connections[[one, two]] is not OURS.connections[[one]]
    assert OURS.connections[[one, two]] is not OURS.connections[[two, one]]
    assert OURS.connections[[one]] is OURS.connections[one]


@pytest.mark.parametrize(
    "names",
    [
        ["amqp://", "amqp://localhost", "pyamqp://guest:guest@127.0.0.1:5672//"],
        ["redis://localhost", "redis://localhost:6379/0", "redis://localhost:6379//"],
    ],
    ids=["amqp", "redis"],
)
def test_one_broker_is_one_pool_whichever_way_it_is_named(names: list[str]) -> None:
    assert len({id(OURS.connections[name]) for name in names}) == 1


@xfail_on_kombu("the policy is written into what is the key", AssertionError)
def test_a_retry_policy_does_not_change_the_pool(
    pools: ModuleType, memory_url: str, inbox: MakeInbox
) -> None:
    box, connection = inbox(memory_url), Connection(memory_url)
    before = pools.producers[connection]
    for number in range(3):
        with pools.producers[connection].acquire(block=True) as producer:
            producer.publish(
                number,
                routing_key=box.name,
                retry=True,
                retry_policy={"max_retries": number + 1, "interval_start": 0},
            )
    options = {"max_retries": 7, "interval_start": 1}
    assert pools.producers[Connection(memory_url, transport_options=options)] is before
    assert pools.producers[connection] is before
    assert connection.transport_options == {}


class Thing:
    """What a group of ours may hold as well as a pool."""


@xfail_on_kombu("looking up takes no lock", AssertionError)
def test_first_look_ups_at_the_same_time_make_one_pool(pools: ModuleType) -> None:
    threads = 8
    everybody_is_here = threading.Barrier(threads)

    class Group(pools.PoolGroup):
        def create(self, resource: Any, limit: int | None) -> Thing:
            everybody_is_here.wait(PATIENCE)
            return Thing()

    group, found = Group(), []
    looking = [
        threading.Thread(target=lambda: found.append(group["one key"])) for _ in range(threads)
    ]
    for thread in looking:
        thread.start()
    for thread in looking:
        thread.join(PATIENCE)
    assert len(found) == threads
    assert len(set(found)) == 1


@pytest.mark.parametrize("group", ["connections", "producers"])
def test_eight_threads_make_one_pool_for_one_key(memory_url: str, group: str) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(50):
            url, barrier, found = f"{memory_url}x{number}", threading.Barrier(8), []

            def look_up(url: str = url, barrier: Any = barrier, found: list[Any] = found) -> None:
                connection = Connection(url)
                barrier.wait(PATIENCE)
                found.append(getattr(OURS, group)[connection])

            threads = [threading.Thread(target=look_up) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert len(found) == 8
            assert len(set(map(id, found))) == 1
    finally:
        sys.setswitchinterval(interval)


# -- acquire and release -----------------------------------------------------------------------------------------------


@xfail_on_kombu("the time-out is ignored", AssertionError)
def test_a_timeout_alone_waits(pools: ModuleType, memory_url: str) -> None:
    pool = pools.connections[Connection(memory_url)]
    pool.limit = 1
    with pool.acquire():
        began = time.monotonic()
        with pytest.raises(ConnectionLimitExceeded):
            pool.acquire(timeout=0.1)
        assert time.monotonic() - began >= 0.1


@xfail_on_kombu("it waits for the inner pool without end", Hangs)
@pytest.mark.parametrize("block", [True, False])
def test_a_timeout_holds_where_the_connections_run_out(
    pools: ModuleType, memory_url: str, block: bool
) -> None:
    connection = Connection(memory_url)
    producers, connections = pools.producers[connection], pools.connections[connection]
    connections.limit = 1
    producers.limit = 2
    with connections.acquire():
        with pytest.raises(LimitExceeded):
            within(patience(pools), lambda: producers.acquire(block=block, timeout=0.2))


@xfail_on_kombu("it blocks where it should refuse", Hangs)
def test_without_a_timeout_running_out_of_connections_is_told_at_once(
    pools: ModuleType, memory_url: str
) -> None:
    connection = Connection(memory_url)
    pools.connections[connection].limit = 1
    with pools.connections[connection].acquire():
        with pytest.raises(LimitExceeded):
            within(patience(pools), pools.producers[connection].acquire)


@pytest.mark.parametrize("waiting", [{}, {"timeout": 0.1}, {"block": True, "timeout": 0.1}])
def test_it_is_told_as_well_of_a_pool_that_kombu_made(memory_url: str, waiting: Any) -> None:
    connections = Connection(memory_url).Pool(limit=1)
    producers = OURS.ProducerPool(connections, limit=2)
    with connections.acquire():
        with pytest.raises(LimitExceeded):
            within(PATIENCE, lambda: producers.acquire(**waiting))
    within(PATIENCE, lambda: producers.acquire(block=True)).release()
    within(PATIENCE, lambda: connections.acquire(block=True)).release()


@xfail_on_kombu("the second release puts it on the queue again", AssertionError)
@pytest.mark.parametrize("group", ["connections", "producers"])
@pytest.mark.parametrize("by", ["pool", "itself"])
def test_released_twice_it_is_not_lent_to_two(
    pools: ModuleType, memory_url: str, group: str, by: str
) -> None:
    pool = getattr(pools, group)[Connection(memory_url)]
    lent = pool.acquire()
    for _ in range(2):
        if by == "pool":
            pool.release(lent)
        else:
            lent.release()
    one, two = pool.acquire(), pool.acquire()
    shared = [getattr(each, "default_channel", None) or each.channel for each in (one, two)]
    one.release()
    two.release()
    assert shared[0] is not shared[1]


def test_a_late_release_leaves_the_next_borrower_alone(memory_url: str) -> None:
    for group in (OURS.connections, OURS.producers):
        pool = group[memory_url]
        pool.limit = 1
        first = pool.acquire()
        first.release()
        second = pool.acquire()
        first.release()
        pool.release(first)
        pool.replace(first)
        with pytest.raises(LimitExceeded):
            pool.acquire()
        assert second.connection.connected if group is OURS.producers else second.connected
        second.release()


@xfail_on_kombu("the place on the queue is not put back", Hangs)
def test_after_a_replacement_nobody_blocks(pools: ModuleType, memory_url: str) -> None:
    pool = pools.connections[Connection(memory_url)]
    pool.limit = 1
    pool.replace(pool.acquire())
    within(patience(pools), lambda: pool.acquire(block=True)).release()


def test_waiters_are_served_in_the_order_in_which_they_came(
    amqp_url: str, inbox: MakeInbox
) -> None:
    box, pool = inbox(amqp_url), OURS.producers[amqp_url]
    pool.limit = 1

    def publish(number: int) -> None:
        with pool.acquire(block=True) as producer:
            producer.publish(number, routing_key=box.name)

    lent = pool.acquire()
    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=publish, args=[number]))
        threads[-1].start()
        eventually(lambda number=number: pool.stats().waiting == number + 1)
    lent.release()
    # Nobody overtakes: unless all of them have been served by now, nothing is free.
    try:
        with pool.acquire():
            assert pool.stats().waiting == 0
    except LimitExceeded:
        pass
    for thread in threads:
        thread.join(PATIENCE)
    assert box.bodies(5) == [0, 1, 2, 3, 4]


# -- fork --------------------------------------------------------------------------------------------------------------

FORK = """
import multiprocessing, os, signal, sys
from importlib import import_module
from kombu import Connection

signal.alarm(60)
module, url, queue, how = sys.argv[1:]
producers = import_module(module).producers
broker = Connection(url, transport_options={"confirm_publish": True})


def publish(body):
    with producers[broker].acquire(block=True) as producer:
        producer.publish(body, routing_key=queue)
        return producer.connection.connection._transport.sock.getsockname()


def in_child(socket_of_parent):
    signal.alarm(30)
    assert publish("child") != socket_of_parent, "the child speaks on its parent's connection"
    publish("child")


mine = publish("parent")
if how == "os.fork":
    child = os.fork()
    if not child:
        code = 1
        try:
            in_child(mine)
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, "the child failed"
else:
    process = multiprocessing.get_context("fork").Process(target=in_child, args=[mine])
    process.start()
    process.join()
    assert process.exitcode == 0, "the child failed"
assert publish("parent") == mine, "the parent's connection was harmed"
"""


@xfail_on_kombu("one socket, two processes", AssertionError)
@pytest.mark.parametrize("how", ["os.fork", "multiprocessing"])
def test_a_forked_child_and_its_parent_each_publish_on_their_own(
    pools: ModuleType, amqp_url: str, inbox: MakeInbox, how: str
) -> None:
    box = inbox(amqp_url)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, pools.__name__, amqp_url, box.name, how],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(box.bodies(4)) == ["child", "child", "parent", "parent"]


# -- connections that broke --------------------------------------------------------------------------------------------


@xfail_on_kombu("it is lent without a look", OSError)
def test_a_connection_that_broke_while_idle_is_not_lent(
    pools: ModuleType, amqp_url: str, inbox: MakeInbox
) -> None:
    box = inbox(amqp_url)
    if pools is OURS:
        always = PoolOptions(check_after=0.0)
        connections = OURS.ConnectionPool(Connection(amqp_url), limit=1, options=always)
    else:
        connections = kombu.connection.ConnectionPool(Connection(amqp_url), limit=1)
    try:
        producers = pools.ProducerPool(connections, limit=1)
        with producers.acquire() as producer:
            producer.publish(1, routing_key=box.name)
            sock = producer.connection.connection._transport.sock
        sock.shutdown(socket.SHUT_RDWR)
        with producers.acquire() as producer:
            producer.publish(2, routing_key=box.name)
    finally:
        connections.force_close_all()
    assert sorted(box.bodies(2)) == [1, 2]


# -- set_limit ---------------------------------------------------------------------------------------------------------


# -- confirms ----------------------------------------------------------------------------------------------------------


@xfail_on_kombu("leaving the block waits for a channel's goodbye", Hangs)
def test_a_silent_peer_does_not_hold_up_the_end_of_the_block(
    pools: ModuleType, amqp_url: str, proxied: Callable[[str], Proxy], queue: str
) -> None:
    proxy = proxied(amqp_url)
    producers = pools.producers[confirming(through(proxy, amqp_url))]

    def publish() -> None:
        with producers.acquire(block=True, timeout=PATIENCE) as producer:
            producer.publish("warm", routing_key=queue)
            proxy.hold(TO_CLIENT)
            producer.publish("x", routing_key=queue, confirm_timeout=0.1)

    try:
        with pytest.raises((TimeoutError, OperationalError)):
            within(patience(pools), publish)
    finally:
        proxy.cut(rst=True)


@xfail_on_kombu("the late ack of one message is taken for the next one's", pytest.fail.Exception)
def test_a_late_ack_is_nobodys(
    pools: ModuleType, amqp_url: str, proxied: Callable[[str], Proxy], queue: str
) -> None:
    proxy = proxied(amqp_url)
    broker = confirming(through(proxy, amqp_url))
    with pools.producers[broker].acquire(block=True, timeout=PATIENCE) as producer:
        # It has room for one.
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        box = kombu.Queue(queue, durable=False, auto_delete=True, queue_arguments=full)
        box(producer.channel).declare()
        producer.publish("warm", routing_key=f"{queue}-nobody")
        proxy.hold(TO_CLIENT)
        with pytest.raises((TimeoutError, OperationalError)):
            producer.publish("in time, its ack is late", routing_key=queue, confirm_timeout=0.1)
        over = threading.Event()

        def let_answers_through() -> None:
            # Once the next one is sent, which ours refuse.
            said = proxy.alive[0]
            eventually(lambda: over.is_set() or b"refused" in said.sent(TO_SERVER))
            proxy.heal()

        healing = threading.Thread(target=let_answers_through)
        healing.start()
        try:
            # It is not in the queue, which is full.
            with pytest.raises((AMQPError, MessageNacked, OperationalError)):
                producer.publish("refused", routing_key=queue)
        finally:
            over.set()
            healing.join()


@xfail_on_kombu("the limit is set first, and the error raised then", AssertionError)
def test_a_limit_that_is_refused_changes_nothing(pools: ModuleType, memory_url: str) -> None:
    idle = pools.connections[Connection(memory_url + "idle")]
    pool = pools.connections[Connection(memory_url)]
    lent = [pool.acquire() for _ in range(3)]
    with pytest.raises(RuntimeError, match=r"(?i)can't shrink"):
        pools.set_limit(2)
    limits = pools.get_limit(), idle.limit, pool.limit
    for one in lent:
        one.release()
    assert limits == (10, 10, 10)


@xfail_on_kombu("it refuses, though there is room", RuntimeError)
def test_a_limit_above_what_is_lent_is_taken(pools: ModuleType, memory_url: str) -> None:
    pool = pools.connections[Connection(memory_url)]
    with pool.acquire():
        pools.set_limit(2)
    assert pool.limit == 2


@xfail_on_kombu("accepted, and ignored", RuntimeError)
@pytest.mark.parametrize("how", ["force", "ignore_errors"])
def test_a_limit_can_be_forced(pools: ModuleType, memory_url: str, how: str) -> None:
    connection = Connection(memory_url)
    pool = pools.connections[connection]
    lent = [pool.acquire() for _ in range(3)]
    assert pools.set_limit(1, **{how: True}) == 1
    assert pools.get_limit() == pool.limit == pools.producers[connection].limit == 1
    # Nothing was taken from those who had it; what is too much is closed as it comes back.
    assert all(one.connected for one in lent)
    for one in lent:
        one.release()
    with pool.acquire(), pytest.raises(ConnectionLimitExceeded):
        pool.acquire()


def test_what_is_over_a_forced_limit_is_closed_as_it_comes_back(memory_url: str) -> None:
    pool = OURS.connections[memory_url]
    lent = [pool.acquire() for _ in range(3)]
    OURS.set_limit(1, force=True)
    for one in lent:
        one.release()
    stats = pool.stats()
    assert (stats.size, stats.idle) == (1, 1)
    assert stats.closed == {"limit": 2}


@xfail_on_kombu("accepted, and ignored", AssertionError)
def test_reset_after_closes_the_old_connections(pools: ModuleType, amqp_url: str) -> None:
    pool = pools.connections[Connection(amqp_url)]
    with pool.acquire() as lent:
        lent.ensure_connection(max_retries=1)
        idle = lent.connection
    pools.set_limit(11, reset_after=True)
    assert not idle.connected


def test_reset_after_closes_what_is_lent_as_it_comes_back(amqp_url: str) -> None:
    pool = OURS.connections[amqp_url]
    with pool.acquire() as lent:
        used = lent.connection
        OURS.set_limit(11, reset_after=True)
        assert used.connected
    assert not used.connected


@xfail_on_kombu("every pool is resized", AssertionError)
def test_a_limit_of_ones_own_is_left_alone(pools: ModuleType, memory_url: str) -> None:
    connection = Connection(memory_url)
    group = pools.register_group(pools.Connections(limit=100))
    pool = group[connection]
    pools.set_limit(7)
    assert pool.limit == 100


# -- reset -------------------------------------------------------------------------------------------------------------


@xfail_on_kombu("Acquire on closed pool", RuntimeError)
@pytest.mark.parametrize("group", ["connections", "producers"])
def test_a_pool_can_be_used_after_a_reset(pools: ModuleType, url: str, group: str) -> None:
    pool = getattr(pools, group)[Connection(url)]
    pool.limit = 1
    pool.acquire().release()
    pools.reset()
    with pool.acquire(block=True):
        with pytest.raises(LimitExceeded):
            pool.acquire()
    assert getattr(pools, group)[Connection(url)] is pool


@xfail_on_kombu("it is closed under its user", (AMQPError, OSError, AttributeError))
def test_what_is_lent_survives_a_reset(pools: ModuleType, amqp_url: str, inbox: MakeInbox) -> None:
    box = inbox(amqp_url)
    with pools.producers[Connection(amqp_url)].acquire(block=True) as producer:
        producer.publish("before", routing_key=box.name)
        used = producer.connection.connection
        pools.reset()
        producer.publish("after", routing_key=box.name)
    assert box.bodies(2) == ["before", "after"]
    assert not used.connected


# -- secrets -----------------------------------------------------------------------------------------------------------


@xfail_on_kombu("the keys are the settings, password and all", AssertionError)
def test_no_group_shows_a_password(pools: ModuleType) -> None:
    connection = Connection(f"memory://user:{SECRET}@somewhere//")
    pools.producers[connection].acquire().release()
    shown = [
        repr(thing)
        for group in (pools.connections, pools.producers)
        for thing in (group, list(group), group.keys(), group.values(), group.items())
    ]
    assert SECRET not in "\n".join(shown)


def test_nothing_else_shows_a_password(amqp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    from traceback import format_exception

    caplog.set_level("DEBUG")
    memory = Connection(f"memory://user:{SECRET}@somewhere//")
    connections, producers = OURS.connections[memory], OURS.producers[memory]
    connections.limit = 1
    lent = connections.acquire()
    shown: list[object] = [lent, connections, producers, connections.engine, connections.stats()]
    errors: list[BaseException] = []

    def fails(work: Callable[[], Any]) -> None:
        with pytest.raises(Exception) as caught:
            work()
        errors.append(caught.value)

    fails(connections.acquire)
    fails(producers.acquire)
    fails(lambda: connections.acquire(timeout=0))
    fails(lambda: OURS.connections[f"{memory.as_uri(include_password=True)}y"].release(lent))
    fails(lambda: producers.release(lent))
    fails(lambda: OURS.set_limit(2) and connections.resize(0.5))
    lent.release()
    shown.append(lent)
    with producers.acquire() as producer:
        shown += [producer, producer.connection]
    shown.append(producer)
    fails(lambda: producer.publish("too late"))
    fails(lambda: lent.channel())
    for path in (f"guest:{SECRET}@localhost:5672//", f"guest:{SECRET}@localhost:1//"):
        # Wrong credentials, and nobody there.
        fails(lambda path=path: OURS.producers[f"amqp://{path}"].acquire())
        fails(lambda path=path: OURS.connections[[f"amqp://{path}", f"pyamqp://{path}"]].acquire())
    fails(lambda: OURS.connections[f"nonsense://user:{SECRET}@somewhere//"].acquire())
    pools = configure(
        default={"url": f"amqp://u:{SECRET}@a//;amqp://u:{SECRET}@b//"},
        other={"url": "redis://a", "transport_options": {"password": SECRET}},
    )
    for alias in pools.settings:
        shown += [pools.settings[alias], pools.connections[alias], pools.producers[alias]]
    shown += [pools, pools.connections, OURS.connections, list(OURS.connections.items())]
    fails(lambda: pools.connections["defualt"])
    fails(lambda: OURS.connections["defualt"])
    text = "\n".join([repr(one) for one in shown] + [str(one) for one in shown])
    assert SECRET not in text
    assert SECRET not in "".join("".join(format_exception(error)) for error in errors)
    assert SECRET not in caplog.text


# -- and besides -------------------------------------------------------------------------------------------------------


def test_a_lent_connection_can_be_cloned(memory_url: str) -> None:
    # kombu 5.7: TypeError, PooledConnection wants its pool.
    with OURS.connections[memory_url].acquire() as lent:
        clone = lent.clone(heartbeat=5)
        assert type(clone) is Connection
        assert not clone.connected
        assert clone.heartbeat == 5
        # A newer kombu shows a password that is not there, too.
        clones, lents = (one.as_uri().replace("://:**@", "://") for one in (clone, lent))
        assert clones == lents


def test_a_lent_connection_stands_for_its_broker(memory_url: str) -> None:
    pool = OURS.connections[memory_url]
    with pool.acquire() as lent:
        assert OURS.connections[lent] is pool
        assert OURS.producers[lent].connections is pool
    apart = OURS.ConnectionPool(Connection(f"{memory_url}apart"), limit=1)
    with apart.acquire() as lent:
        made = OURS.connections[lent]
    # The lease has ended; the pool that was made by it has settings of its own.
    made.acquire().release()


def test_a_connection_that_is_gone_when_it_comes_back_is_not_lent_again(amqp_url: str) -> None:
    pool = OURS.connections[amqp_url]
    with pool.acquire() as lent:
        lent.connection.collect()
    stats = pool.stats()
    assert (stats.idle, stats.closed) == (0, {"broken": 1})


def test_replaced_it_is_closed_even_if_close_resource_releases_it(memory_url: str) -> None:
    class Pool(OURS.ProducerPool):
        def close_resource(self, resource: Any) -> None:
            resource.close()

    pool = Pool(OURS.connections[memory_url])
    pool.replace(pool.acquire())
    assert pool.stats().closed == {"replaced": 1}


def test_a_failure_of_close_resource_loses_nothing(memory_url: str) -> None:
    class Pool(OURS.ProducerPool):
        def close_resource(self, resource: Any) -> None:
            raise ZeroDivisionError

    pool = Pool(OURS.connections[memory_url], limit=1)
    for _ in range(2):
        producer = pool.acquire()
        with pytest.raises(ZeroDivisionError):
            pool.replace(producer)
    assert (pool.lent, pool.stats().closed) == (0, {"replaced": 2})


def test_kombus_pools_are_untouched_by_ours() -> None:
    assert KOMBU.connections is not OURS.connections
    ours = (OURS.connections, OURS.producers)
    assert not any(registered is group for registered in KOMBU._groups for group in ours)
