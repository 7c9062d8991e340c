"""A child owns nothing of what its parent opened, however it was forked; and the parent notices nothing.

Between the pools and the broker stands a proxy, which sees every byte that anybody says on the parent's connections.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import billiard
import pytest

from kombu_pools_ext import events, pools
from kombu_pools_ext.broker.message_id import new_message_id
from kombu_pools_ext.engine import fork as fork_module
from kombu_pools_ext.errors import LeaseError
from tests.broker.common import PATIENCE, eventually, within
from tests.broker.conftest import Inbox
from tests.broker.rig import confirming, in_child, sockets_to, through
from tests.proxy import TO_SERVER, Proxy

pytestmark = [
    pytest.mark.forks,
    pytest.mark.threads,
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

#: Seconds between two messages of the thread that publishes while children fork. About as long as a publish: without
#: a pause most of the time goes into ten thousand messages.
PAUSE = 0.0005


def _skipping_the_hook() -> int:
    """``fork`` as a server in C calls it: the pools' hook does not run.

    Python's own do, for without them no process with threads survives a fork. What a fork in C is like in every respect
    is shown by a program with one thread, below.
    """
    hook = fork_module.child_begins
    code = hook.__code__
    hook.__code__ = (lambda: None).__code__
    try:
        return os.fork()
    finally:
        hook.__code__ = code


FORKS = {"os.fork": os.fork, "hook skipped": _skipping_the_hook}


@pytest.fixture(params=FORKS, ids=lambda name: name.replace(" ", "-"))
def fork(request: pytest.FixtureRequest) -> Callable[[], int]:
    return FORKS[request.param]


class Parent:
    """Pools of this process before a broker, behind a proxy; and what must not change when it forks."""

    def __init__(self, url: str, proxy: Proxy, inbox: Inbox, **options: Any) -> None:
        self.proxy, self.inbox = proxy, inbox
        self.url = through(proxy, url)
        self.connection = confirming(self.url, **options)
        self.connections = pools.connections[self.connection]
        self.producers = pools.producers[self.connection]
        self.published: list[Any] = []

    def publish(self, body: Any) -> None:
        """One message, from the parent or from a child; back when it is at the broker."""
        with self.producers.acquire(timeout=PATIENCE) as producer:
            producer.publish(body, routing_key=self.inbox.name)

    def open(self, count: int) -> None:
        """Have so many idle connections."""
        leases = [self.producers.acquire(timeout=PATIENCE) for _ in range(count)]
        for number, producer in enumerate(leases):
            producer.publish(f"warm {number}", routing_key=self.inbox.name)
            self.published.append(f"warm {number}")
        for producer in leases:
            producer.release()

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """Within, children fork and end: they say nothing on the sockets of this process, and end none of them."""
        before = sockets_to(self.proxy.port)
        links = self.proxy.alive
        assert links
        said = [link.sent(TO_SERVER) for link in links]
        opened = self.connections.stats().opened
        yield
        assert sockets_to(self.proxy.port) == before
        assert [link.sent(TO_SERVER) for link in links] == said
        assert not any(link.closed for link in links)
        # The very same connections go on confirming.
        count = self.connections.stats().idle
        leases = [self.producers.acquire(timeout=PATIENCE) for _ in range(count)]
        for number, producer in enumerate(leases):
            producer.publish(f"after {number}", routing_key=self.inbox.name)
            self.published.append(f"after {number}")
        for producer in leases:
            producer.release()
        assert sockets_to(self.proxy.port) == before
        assert self.connections.stats().opened == opened

    def assert_all_arrived(self, *from_children: Any) -> None:
        """Everything published is at the broker, once."""
        assert sorted(self.inbox.bodies()) == sorted([*self.published, *from_children])

    def work_of_child(self, inherited: set[int], body: Any) -> dict[str, Any]:
        """In a child: what it has, after it has published and consumed."""
        self.publish(body)
        with self.connections.acquire(timeout=PATIENCE) as connection:
            simple = connection.SimpleQueue(f"{self.inbox.name}-{os.getpid()}")
            simple.put("to myself")
            message = simple.get(timeout=PATIENCE)
            message.ack()
            simple.close()
            simple.queue(connection.default_channel).delete()
        stats = self.connections.stats()
        return {
            "heard": message.payload,
            "inherited": sorted(inherited & set(sockets_to(self.proxy.port))),
            "opened": stats.opened,
            "state": (stats.idle, stats.lent, stats.size),
            "limit": stats.limit,
        }


#: What a child that has published and consumed looks like.
SOUND = {"heard": "to myself", "inherited": [], "opened": 1, "state": (1, 0, 1), "limit": 10}


@pytest.fixture
def parent(
    broker_url: str, proxied: Callable[[str], Proxy], inbox: Callable[[str], Inbox]
) -> Parent:
    return Parent(broker_url, proxied(broker_url), inbox(broker_url))


def test_with_idle_connections(parent: Parent, fork: Callable[[], int]) -> None:
    parent.open(3)
    inherited = set(sockets_to(parent.proxy.port))
    assert len(inherited) >= 3
    with parent.unharmed():
        assert in_child(lambda: parent.work_of_child(inherited, "child"), fork) == SOUND
    parent.assert_all_arrived("child")


def test_with_leases_out(parent: Parent, fork: Callable[[], int]) -> None:
    parent.open(3)
    connection = parent.connections.acquire()
    producer = parent.producers.acquire()
    inherited = set(sockets_to(parent.proxy.port))

    def child() -> Any:
        if fork is not os.fork:
            # Nothing tells the child of its birth before its first step in a pool.
            parent.connections.stats()
        for use in (
            lambda: producer.publish("stolen", routing_key=parent.inbox.name),
            lambda: producer.channel.basic_publish,
            lambda: producer.connection.default_channel,
            lambda: connection.channel(),
            lambda: connection.default_channel,
            lambda: connection.connection.channel(),
            lambda: connection.ensure_connection(),
            lambda: connection.Producer().publish("stolen", routing_key=parent.inbox.name),
        ):
            with pytest.raises(LeaseError, match="forked from"):
                use()
        # Giving it back is nothing to the child, and hers it is not.
        for _ in range(2):
            connection.release()
            producer.release()
            parent.connections.release(connection)
            parent.producers.release(producer)
        return parent.work_of_child(inherited, "child")

    with parent.unharmed():
        assert in_child(child, fork) == SOUND
    producer.publish("mine", routing_key=parent.inbox.name)
    parent.published.append("mine")
    producer.release()
    connection.release()
    assert parent.connections.stats().closed == {}
    parent.assert_all_arrived("child")


def _refused(lease: Any) -> None:
    with pytest.raises(LeaseError, match="forked from"):
        lease.publish("stolen", routing_key="nobody-is-there")


FIRST_STEPS: dict[str, Callable[[Parent, Any], object]] = {
    "acquire": lambda parent, lease: None,
    "release": lambda parent, lease: lease.release(),
    "use": lambda parent, lease: _refused(lease),
    "replace": lambda parent, lease: parent.producers.replace(lease),
    "stats": lambda parent, lease: parent.connections.stats(),
    "resize": lambda parent, lease: parent.producers.resize(10),
    "drain": lambda parent, lease: parent.connections.force_close_all(close_pool=False),
    "reset": lambda parent, lease: pools.reset(),
}


@pytest.mark.parametrize("first_step", FIRST_STEPS, ids=lambda name: name.replace(" ", "-"))
def test_with_the_lock_held_by_another_thread(
    amqp_url: str,
    proxied: Callable[[str], Proxy],
    inbox: Callable[[str], Inbox],
    fork: Callable[[], int],
    first_step: str,
) -> None:
    parent = Parent(amqp_url, proxied(amqp_url), inbox(amqp_url))
    parent.open(2)
    lease = parent.producers.acquire()
    inherited = set(sockets_to(parent.proxy.port))
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        # Those of the pool, and of the maintenance thread.
        engine = parent.connections.engine
        with engine.lock, engine.keeper._lock:
            held.set()
            leave.wait(PATIENCE)

    def child() -> Any:
        FIRST_STEPS[first_step](parent, lease)
        return parent.work_of_child(inherited, "child")

    holder = threading.Thread(target=hold)
    with parent.unharmed():
        holder.start()
        assert held.wait(PATIENCE)
        try:
            answer = in_child(child, fork)
        finally:
            leave.set()
            holder.join()
        assert answer == SOUND
    lease.release()
    parent.assert_all_arrived("child")


def test_while_another_thread_publishes(parent: Parent, fork: Callable[[], int]) -> None:
    parent.open(1)
    stop, going = threading.Event(), threading.Event()

    def publish() -> None:
        while not stop.is_set():
            parent.publish(f"on {len(parent.published)}")
            parent.published.append(f"on {len(parent.published)}")
            going.set()
            stop.wait(PAUSE)

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        assert going.wait(PATIENCE)
        for number in range(5):
            inherited = set(sockets_to(parent.proxy.port))
            answer = in_child(
                lambda n=number, i=inherited: parent.work_of_child(i, f"child {n}"), fork
            )
            assert answer == SOUND
    finally:
        stop.set()
        publisher.join()
    # One thread, one connection: had it been harmed, there were another.
    assert parent.connections.stats().opened == 1
    parent.assert_all_arrived(*(f"child {number}" for number in range(5)))


def test_with_an_opening_and_a_waiter_under_way(
    amqp_url: str,
    proxied: Callable[[str], Proxy],
    inbox: Callable[[str], Inbox],
    fork: Callable[[], int],
) -> None:
    # The opening is not to end by itself, however long a fork takes.
    parent = Parent(amqp_url, proxied(amqp_url), inbox(amqp_url), connect_timeout=10 * PATIENCE)
    parent.proxy.silence()
    borrower = threading.Thread(target=lambda: parent.publish("late"))
    borrower.start()
    eventually(lambda: parent.proxy.alive)
    half_open = set(sockets_to(parent.proxy.port))

    def child() -> Any:
        stats = parent.connections.stats()
        before = stats.size, stats.opening, stats.waiting
        with pytest.raises(parent.connections.LimitExceeded):
            parent.connections.acquire(timeout=0)
        return before

    assert in_child(child, fork) == (0, 0, 0)
    assert set(sockets_to(parent.proxy.port)) == half_open
    parent.proxy.heal()
    borrower.join(PATIENCE)
    assert not borrower.is_alive()
    assert parent.inbox.bodies() == ["late"]


def test_a_child_forks_in_its_turn(parent: Parent, fork: Callable[[], int]) -> None:
    parent.open(2)
    inherited = set(sockets_to(parent.proxy.port))

    def child() -> Any:
        answer = parent.work_of_child(inherited, "child")
        mine = sockets_to(parent.proxy.port)
        assert mine
        grandchild = in_child(
            lambda: parent.work_of_child(inherited | set(mine), "grandchild"), fork
        )
        parent.publish("child again")
        assert sockets_to(parent.proxy.port) == mine
        return answer, grandchild, parent.connections.stats().opened

    with parent.unharmed():
        assert in_child(child, fork) == (SOUND, SOUND, 1)
    parent.assert_all_arrived("child", "grandchild", "child again")


def test_a_fork_from_a_thread(parent: Parent, fork: Callable[[], int]) -> None:
    parent.open(2)
    inherited = set(sockets_to(parent.proxy.port))
    with parent.unharmed():
        answer = within(
            2 * PATIENCE,
            lambda: in_child(lambda: parent.work_of_child(inherited, "child"), fork),
        )
    assert answer == SOUND
    parent.assert_all_arrived("child")


@pytest.mark.parametrize(
    "library", [multiprocessing.get_context("fork"), billiard], ids=["multiprocessing", "billiard"]
)
def test_with_a_library_of_processes(parent: Parent, library: Any) -> None:
    parent.open(2)
    lease = parent.producers.acquire()
    inherited = set(sockets_to(parent.proxy.port))
    receiving, sending = library.Pipe(False)
    process = library.Process(target=lambda: sending.send(parent.work_of_child(inherited, "child")))
    with parent.unharmed():
        process.start()
        assert receiving.poll(PATIENCE)
        assert receiving.recv() == SOUND
        process.join(PATIENCE)
        assert process.exitcode == 0
    lease.release()
    receiving.close()
    sending.close()
    parent.assert_all_arrived("child")


# -- whole programs: how a child ends, and processes that are not forked from this one -------------------------------

PROGRAM = """
import ctypes, gc, multiprocessing, os, sys
import kombu
from kombu_pools_ext import pools

url, queue, way = sys.argv[1:]
connection = kombu.Connection(url, transport_options={"confirm_publish": True})

def publish(body):
    with pools.producers[connection].acquire(timeout=30) as producer:
        producer.publish(body, routing_key=queue)

def work():
    publish("child")

def main():
    producers = pools.producers[connection]
    leases = [producers.acquire(timeout=30) for _ in range(3)]
    for lease in leases:
        lease.publish("parent", routing_key=queue)
    leases.pop().release()
    leases.pop().release()
    lease = leases.pop()
    if way in ("spawn", "forkserver"):
        process = multiprocessing.get_context(way).Process(target=work)
        process.start()
        process.join(30)
        assert process.exitcode == 0, process.exitcode
    else:
        fork = os.fork if way.startswith("hooks") else ctypes.PyDLL(None).fork
        pid = fork()
        if pid == 0:
            if way.endswith("that works"):
                work()
            # An ordinary end: exit handlers, finalizers, everything.
            del lease
            gc.collect()
            sys.exit(0)
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
    lease.publish("parent again", routing_key=queue)
    lease.release()
    # The very same three, which the child has neither closed nor spoken on.
    leases = [producers.acquire(timeout=30) for _ in range(3)]
    for lease in leases:
        lease.publish("parent again", routing_key=queue)
        lease.release()
    assert pools.connections[connection].stats().opened == 3, pools.connections[connection]
    assert pools.connections[connection].stats().closed == {}

if __name__ == "__main__":
    main()
"""


WAYS = [
    "spawn",
    "forkserver",
    "hooks, and a child that is idle",
    "hooks, and a child that works",
    "no hooks, and a child that is idle",
    "no hooks, and a child that works",
]


@pytest.mark.parametrize("way", WAYS)
def test_a_program_whose_child_ends_in_an_ordinary_way(
    amqp_url: str,
    proxied: Callable[[str], Proxy],
    inbox: Callable[[str], Inbox],
    tmp_path: Any,
    way: str,
) -> None:
    if way.startswith("no hooks") and not sys.platform.startswith("linux"):
        pytest.skip("a fork without hooks is made on Linux only")
    box, proxy = inbox(amqp_url), proxied(amqp_url)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "dev",
            "-W",
            "error",
            "-W",
            "ignore::DeprecationWarning",
            str(program),
            through(proxy, amqp_url),
            box.name,
            way,
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    ours = [] if way.endswith("idle") else ["child"]
    assert sorted(box.bodies()) == [*ours, *["parent"] * 3, *["parent again"] * 4]
    assert proxy.accepted == 3 + len(ours)


# -- the way of a child that skipped the hooks ----------------------------------------------------


def test_threads_of_a_child_do_not_overtake_its_beginning(
    amqp_url: str, proxied: Callable[[str], Proxy], inbox: Callable[[str], Inbox]
) -> None:
    parent = Parent(amqp_url, proxied(amqp_url), inbox(amqp_url))
    parent.open(3)

    def child() -> tuple[bool, bool]:
        begun, overtaken = threading.Event(), threading.Event()
        driver = parent.connections._driver
        abandon = driver.abandon

        def slowly(item: Any) -> None:
            # Whoever overtakes does it now; whoever waits would wait for ever.
            begun.set()
            overtaken.wait(0.3)
            abandon(item)

        driver.abandon = slowly  # type: ignore[method-assign]

        def second() -> None:
            begun.wait(PATIENCE)
            parent.publish("second")
            overtaken.set()

        other = threading.Thread(target=second)
        other.start()
        parent.connections.stats()
        early = overtaken.is_set()
        other.join(PATIENCE)
        return early, other.is_alive()

    with parent.unharmed():
        assert in_child(child, _skipping_the_hook) == (False, False)
    parent.assert_all_arrived("second")


def test_a_listener_may_use_the_pools_in_the_child(parent: Parent, fork: Callable[[], int]) -> None:
    parent.open(1)
    reasons: list[str] = []

    def listener(reason: str) -> None:
        reasons.append(reason)
        parent.publish("from a listener")

    events.pools_reset.connect(listener)
    try:
        with parent.unharmed():
            heard = in_child(lambda: [parent.publish("child"), reasons][1], fork)
    finally:
        events.pools_reset.disconnect(listener)
    assert heard == ["fork"]
    assert reasons == []
    parent.assert_all_arrived("from a listener", "child")


def test_where_no_page_is_wiped_the_process_id_tells(fork: Callable[[], int]) -> None:
    mark = fork_module._PidMark()
    assert mark[0]

    def child() -> tuple[bool, bool]:
        before = bool(mark[0])
        mark[0] = 1
        return before, bool(mark[0])

    assert in_child(child, fork) == (False, True)
    assert mark[0]


def test_the_configuration_and_a_closed_pool_are_inherited(
    amqp_url: str, fork: Callable[[], int]
) -> None:
    pool = pools.ConnectionPool(confirming(amqp_url), limit=3)
    closed = pools.ConnectionPool(confirming(amqp_url), limit=3)
    closed.force_close_all()

    def child() -> Any:
        with pytest.raises(RuntimeError, match="closed pool"):
            closed.acquire()
        leases = [pool.acquire(timeout=PATIENCE) for _ in range(3)]
        with pytest.raises(pool.LimitExceeded):
            pool.acquire()
        for lease in leases:
            lease.release()
        return pool.force_close_all().closed

    assert in_child(child, fork) == 3
    assert pool.stats().size == 0


def test_a_child_names_its_messages_otherwise(fork: Callable[[], int]) -> None:
    def names() -> set[str]:
        return {new_message_id() for _ in range(100)}

    before = names()
    childrens = [in_child(names, fork) for _ in range(2)]
    assert len(before.union(names(), *childrens)) == 400
