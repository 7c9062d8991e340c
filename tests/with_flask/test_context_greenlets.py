"""A context that is at work in several greenlets: each has a producer of its own, and none stays lent.

Each test runs in a process of its own, in which gevent or eventlet has replaced the threads.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from .conftest import received

pytestmark = pytest.mark.threads

PROGRAM = """
import sys
library, how, url, queue, warm = sys.argv[1:]
if library == "gevent":
    from gevent import monkey
    monkey.patch_all()
    import gevent
else:
    import warnings
    warnings.simplefilter("ignore")
    import eventlet
    eventlet.monkey_patch()
import contextvars
import threading
from flask import Flask
from flask_ext import KombuPools

COUNT = 6


def start(work):
    if how == "thread":
        thread = threading.Thread(target=work)
        thread.start()
        return thread
    if library == "gevent":
        return gevent.spawn(work)
    return eventlet.spawn(work) if how == "spawn" else eventlet.spawn_n(work)


app = Flask("shop")
# As many as a context holds at most: what an ended greenlet held has to be there for the next.
settings = {"URL": url, "LIMIT": COUNT + 1, "ACQUIRE_TIMEOUT": 20, "MIN_IDLE": int(warm)}
app.config["KOMBU_POOLS"] = {"default": settings}
pools = KombuPools(app)
pool = app.extensions["kombu_pools"].connections["default"]
if int(warm):
    app.extensions["kombu_pools"].wait_ready(30)
failed = []


def publish(name, done, together):
    try:
        mine = pools.producer
        together.wait(30)
        assert pools.producer is mine
        pools.producer.publish(name + " producer", queue)
        pools.publish(name + " alone", queue)
        together.wait(30)
    except BaseException as error:
        failed.append(repr(error))
        raise
    finally:
        done.release()


with app.app_context():
    pools.producer.publish("main", queue)
    # All that ran stay referred to: a greenlet has ended before it is collected.
    kept = []
    for wave in range(3):
        done, together = threading.Semaphore(0), threading.Barrier(COUNT)
        for number in range(COUNT):
            name = f"{wave}-{number}"
            run = contextvars.copy_context().run
            kept.append(start(lambda run=run, name=name: run(publish, name, done, together)))
        for _ in range(COUNT):
            assert done.acquire(timeout=60)
        assert not failed, failed
        # Each ends right after it has said so.
        if library == "gevent":
            gevent.sleep(0)
        else:
            eventlet.sleep(0)
        assert pool.lent == COUNT + 1, pool.lent
stats = pool.stats()
assert stats.lent == 0, stats
assert stats.opened == COUNT + 1, stats
assert "broken" not in stats.closed, stats
"""


@pytest.mark.parametrize("warm", [0, 7], ids=["cold", "warm"])
@pytest.mark.parametrize(
    "library, how",
    [
        ("gevent", "spawn"),
        ("gevent", "thread"),
        ("eventlet", "spawn"),
        ("eventlet", "spawn_n"),
        ("eventlet", "thread"),
    ],
)
def test_greenlets_of_one_context_publish_each_message_once(
    amqp_url: str, amqp_queue: str, library: str, how: str, warm: int
) -> None:
    command = [sys.executable, "-c", PROGRAM, library, how, amqp_url, amqp_queue, str(warm)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names = [f"{wave}-{number}" for wave in range(3) for number in range(6)]
    assert sorted(received(amqp_url, amqp_queue)) == sorted(
        ["main", *(f"{name} {how}" for name in names for how in ("alone", "producer"))]
    )
