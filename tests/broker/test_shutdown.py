"""The end: of a pool, and of the interpreter."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kombu_pools_ext import pools
from kombu_pools_ext.engine import PoolOptions, closing, maintenance
from kombu_pools_ext.errors import PoolClosed
from tests.broker.common import PATIENCE, eventually
from tests.broker.rig import Node, confirming, sockets_to, through
from tests.proxy import TO_CLIENT, TO_SERVER, Proxy

#: Threads that work for pools; others with such names are the process's, as who listens for commands.
THE_POOLS_THREADS = {"kombu-pools-maintenance", "kombu-pools-open", "kombu-pools-close"}
#: Connection.Close, the method of AMQP.
CLOSE = b"\x00\x0a\x00\x32"

PROGRAM = """
import atexit, json, os, sys, threading, time
import kombu
from kombu_pools_ext import events, pools

arguments = json.loads(sys.argv[1])
url, ways = arguments["url"], arguments["ways"]
atexit.register(lambda: print(f"exited {time.monotonic()}", flush=True))
producers = pools.producers[kombu.Connection(url)]
leases = [producers.acquire(timeout=30) for _ in range(4)]
for lease in leases:
    lease.publish("x", routing_key="nobody-is-there")
for lease in leases[1:]:
    lease.release()
if "lent" not in ways:
    leases[0].release()
if "opening" in ways:
    # To a peer that says nothing: the thread of this opening never ends.
    thread = threading.Thread(
        target=pools.connections[arguments["mute"]].acquire, kwargs={"block": True}, daemon=True
    )
    thread.start()
    while not pools.connections[arguments["mute"]].stats().opening:
        time.sleep(0.01)
if "at exit" in ways:
    def once_more():
        with producers.acquire(timeout=30) as producer:
            producer.publish("the last", routing_key=arguments["queue"])
    # Registered later than the pools' own, so it runs first.
    atexit.register(once_more)
if "child" in ways:
    pid = os.fork()
    if pid == 0:
        with producers.acquire(timeout=30) as producer:
            producer.publish("x", routing_key="nobody-is-there")
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
if "held" in ways:
    print("ready", flush=True)
    sys.stdin.readline()
print(f"ends {time.monotonic()}", flush=True)
"""


class Program:
    """A program that leaves its pools as they are."""

    def __init__(self, folder: Path, url: str, *ways: str, **arguments: str) -> None:
        path = folder / "program.py"
        path.write_text(PROGRAM)
        arguments_as_json = json.dumps({"url": url, "ways": ways, **arguments})
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-X",
                "dev",
                "-W",
                "error",
                "-W",
                "ignore::DeprecationWarning",
                str(path),
                arguments_as_json,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> float:
        """Let it end, in silence and with success; the seconds from its last line to its end."""
        said, complaints = self.process.communicate("go on\n", timeout=PATIENCE)
        ended = time.monotonic()
        assert complaints == ""
        assert self.process.returncode == 0
        last = [line for line in said.splitlines() if line.startswith("ends ")][-1]
        # One clock for all processes of a machine.
        return ended - float(last.split()[1])


@pytest.mark.forks
@pytest.mark.parametrize(
    "ways",
    [(), ("lent",), ("opening",), ("lent", "opening"), ("child",)],
    ids=["idle", "lent", "opening", "lent and opening", "a child"],
)
def test_a_program_ends_in_silence_and_says_goodbye(
    node: Node, mute: Proxy, proxied: Callable[[str], Proxy], tmp_path: Path, ways: tuple[str, ...]
) -> None:
    proxy = proxied(node.url)
    program = Program(tmp_path, through(proxy, node.url), *ways, mute=f"amqp://{mute.address}//")
    assert program.end() < 5.0
    eventually(lambda: not proxy.alive)
    said_goodbye = [link for link in proxy.links if CLOSE in link.sent(TO_SERVER)]
    assert len(proxy.links) == 4 + ("child" in ways)
    # Also what was never given back, unless another thread runs that could be in the middle of a frame.
    left = int({"lent", "opening"} <= set(ways))
    assert len(said_goodbye) == len(proxy.links) - left
    # As the broker has it: a client that closes, or one that dies.
    for link in proxy.links:
        eventually(lambda port=link.port: "closing AMQP connection" in node.log(port))
    cut_off = "client unexpectedly closed TCP connection"
    eventually(lambda: sum(cut_off in node.log(link.port) for link in proxy.links) == left)


@pytest.mark.threads
def test_what_is_used_at_exit_still_works(
    node: Node, proxied: Callable[[str], Proxy], inbox: Callable[[str], Any], tmp_path: Path
) -> None:
    box, proxy = inbox(node.url), proxied(node.url)
    Program(tmp_path, through(proxy, node.url), "at exit", queue=box.name).end()
    assert box.bodies(1) == ["the last"]
    assert all(CLOSE in link.sent(TO_SERVER) for link in proxy.links)


@pytest.mark.threads
def test_silent_peers_hold_up_the_exit_for_a_second_together(
    amqp_url: str, proxied: Callable[[str], Proxy], tmp_path: Path
) -> None:
    proxy = proxied(amqp_url)
    program = Program(tmp_path, through(proxy, amqp_url), "held")
    assert program.process.stdout is not None
    assert program.process.stdout.readline() == "ready\n"
    proxy.hold(TO_CLIENT)
    took = program.end()
    # The last one to speak is as silent as the others, and each was told of the end.
    assert closing.TOGETHER * 0.9 < took < closing.TOGETHER + 3.0
    eventually(lambda: all(CLOSE in link.sent(TO_SERVER) for link in proxy.links))
    assert len(proxy.links) == 4


@pytest.mark.threads
def test_peers_that_are_gone_do_not_hold_up_the_exit(
    amqp_url: str, proxied: Callable[[str], Proxy], tmp_path: Path
) -> None:
    proxy = proxied(amqp_url)
    program = Program(tmp_path, through(proxy, amqp_url), "held")
    assert program.process.stdout is not None
    assert program.process.stdout.readline() == "ready\n"
    proxy.cut(rst=True)
    assert program.end() < 5.0


def test_after_the_goodbye_a_pool_works_and_keeps_nothing(amqp_url: str) -> None:
    pool = pools.ConnectionPool(confirming(amqp_url), limit=3, options=PoolOptions(min_idle=2))
    idle, lent = pool.acquire(timeout=PATIENCE), pool.acquire(timeout=PATIENCE)
    idle.release()
    for entry, _ in pool.engine.stop_keeping().closings:
        pool.engine.close_entry(entry, "closed")
    lent.channel().close()
    lent.release()
    with pool.acquire(timeout=PATIENCE) as late:
        late.channel().close()
    eventually(lambda: pool.stats().size == 0)
    # Nor is there anything kept open in the background.
    assert pool.engine.expiry.refill() == 0
    pool.force_close_all()


# -- the end of a pool ----------------------------------------------------


@pytest.mark.threads
def test_a_closed_pool_leaves_no_thread_and_no_descriptor(
    amqp_url: str, proxied: Callable[[str], Proxy]
) -> None:
    proxy = proxied(amqp_url)
    pool = pools.ConnectionPool(confirming(through(proxy, amqp_url)), limit=5)
    producers = pools.ProducerPool(pool)
    lent, *others = [producers.acquire(timeout=PATIENCE) for _ in range(5)]
    assert len(sockets_to(proxy.port)) == 5
    waiting: list[BaseException] = []

    def wait() -> None:
        try:
            pool.acquire(block=True)
        except BaseException as error:
            waiting.append(error)

    waiters = [threading.Thread(target=wait) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    eventually(lambda: pool.stats().waiting == 3)
    # Full, so nothing that comes back goes to idle: it goes to those who wait, who are refused first.
    assert pool.force_close_all() == (0, 5)
    for waiter in waiters:
        waiter.join(PATIENCE)
    assert [type(error) for error in waiting] == [PoolClosed] * 3
    lent.publish("x", routing_key="nobody-is-there")
    for producer in (lent, *others):
        producer.release()
    assert pool.stats().size == 0
    assert pool.stats().closed == {"closed": 5}
    assert sockets_to(proxy.port) == {}
    eventually(lambda: not proxy.alive)
    assert all(CLOSE in link.sent(TO_SERVER) for link in proxy.links)
    with pytest.raises(PoolClosed, match="closed pool"):
        pool.acquire(block=True)
    with pytest.raises(PoolClosed, match="closed pool"):
        producers.acquire(timeout=1)
    pools.reset()

    def nobody_left() -> bool:
        # What an earlier test has left in a cycle keeps the maintenance thread, which would not look before long.
        gc.collect()
        maintenance.shared.nudge()
        return not {one.name for one in threading.enumerate()} & THE_POOLS_THREADS

    eventually(nobody_left)


@pytest.mark.threads
def test_an_opening_that_ends_after_the_close_is_closed(
    amqp_url: str, proxied: Callable[[str], Proxy]
) -> None:
    proxy = proxied(amqp_url)
    origin = confirming(through(proxy, amqp_url), connect_timeout=PATIENCE)
    pool = pools.ConnectionPool(origin, limit=5)
    proxy.silence()
    failed: list[BaseException] = []

    def acquire() -> None:
        try:
            pool.acquire(block=True)
        except BaseException as error:
            failed.append(error)

    borrower = threading.Thread(target=acquire)
    borrower.start()
    eventually(lambda: proxy.links)
    began = time.monotonic()
    pool.force_close_all()
    borrower.join(PATIENCE)
    assert time.monotonic() - began < PATIENCE / 2
    assert isinstance(failed[0], PoolClosed)
    proxy.heal()
    eventually(lambda: pool.stats().closed == {"closed": 1})
    assert pool.stats().size == 0
    assert sockets_to(proxy.port) == {}
