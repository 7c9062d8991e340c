"""What only greenlets do: give up through a time-out of their library's."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest

from kombu_pools_ext.engine import Pool
from tests.engine.fakes import PATIENCE, Driver, Item, in_thread, wait_until


def timeout_class() -> Any:
    """The `Timeout` of the library that has replaced the threads, if one has."""
    for library in ("gevent", "eventlet"):
        if _is_patched(library):
            return sys.modules[library].Timeout
    pytest.skip("threads are threads here")


def _is_patched(library: str) -> bool:
    patcher = sys.modules.get("gevent.monkey" if library == "gevent" else "eventlet.patcher")
    if patcher is None:
        return False
    if library == "gevent":
        return bool(patcher.is_module_patched("threading"))
    return bool(patcher.is_monkey_patched("thread"))


@pytest.mark.parametrize(
    "within", [{"wait": True}, {"timeout": PATIENCE}], ids=["no end", "timeout"]
)
def test_a_greenlets_timeout_ends_its_wait_and_takes_nothing_with_it(
    within: dict[str, Any],
) -> None:
    timeout = timeout_class()
    pool: Pool[Item] = Pool(Driver(), limit=1)
    lease = pool.acquire(timeout=PATIENCE)
    with pytest.raises(timeout):
        with timeout(0.01):
            pool.acquire(**within)
    assert pool.stats().waiting == 0
    with in_thread(lambda: pool.acquire(**within)) as acquired:
        wait_until(lambda: pool.stats().waiting == 1)
        pool.release(lease)
    acquired.value.end()
    assert pool.stats().idle == 1
    pool.close()


def test_a_greenlets_timeout_during_an_opening_leaves_an_idle_item() -> None:
    timeout = timeout_class()
    driver, hang = Driver(), threading.Event()
    driver.opening.append(lambda: hang.wait(PATIENCE))
    pool: Pool[Item] = Pool(driver, limit=1)
    with pytest.raises(timeout):
        with timeout(0.01):
            pool.acquire(wait=True)
    hang.set()
    wait_until(lambda: pool.stats().idle == 1)
    pool.close()


LATE = """
import sys, time
from kombu_pools_ext import pools

producers = pools.producers["memory://"]
if sys.argv[1] == "gevent":
    from gevent import monkey
    monkey.patch_all()
else:
    import eventlet
    eventlet.monkey_patch()
for number in range(3):
    with producers.acquire(timeout=10) as producer:
        producer.publish(number, routing_key="nobody-is-there")
    # The maintenance thread is a greenlet now; when it naps, others run.
    time.sleep(0.01)
assert pools.connections["memory://"].stats().opened == 1
"""


@pytest.mark.threads
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_pools_that_were_made_before_the_patch(library: str) -> None:
    command = [sys.executable, "-c", LATE, library]
    # eventlet itself has words for whoever patches late.
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
