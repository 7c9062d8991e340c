"""What is said while the interpreter ends: it is published, or refused in clear words, and the process ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import kombu
import pytest

from tests.broker.common import PATIENCE
from tests.proxy import Proxy

PROGRAM = r"""
import atexit, json, logging, sys, threading, time

arguments = json.loads(sys.argv[1])
where, ways, queue = arguments["where"], arguments["ways"], arguments["queue"]


def last_words():
    began = time.monotonic()
    try:
        WHAT[arguments["what"]]()
        said = "done"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    print(f"{time.monotonic() - began:.3f} {said}", flush=True)


if where == "atexit":
    # Registered before the pools' own, so it runs after that.
    atexit.register(last_words)

from kombu_pools_ext import configure

# Most of what is said here is for nobody.
pools = configure(default={"url": arguments["url"], "confirm_timeout": 5, "mandatory": False})
WHAT = {
    "publish": lambda: pools.publish("last words", queue),
    "acquire": lambda: pools.connections["default"].acquire(block=True),
    "shortly": lambda: pools.connections["default"].acquire(timeout=0.2),
    "ready": lambda: pools.producers["default"].wait_ready(30),
    "held": lambda: held.publish("last words", queue),
    "release": lambda: held.release(),
    "close": lambda: pools.connections["default"].force_close_all(),
    "drain": lambda: pools.drain(0.1),
    "reset": lambda: pools.reset(),
}
if "used" in ways:
    pools.publish("first words", queue)
held = pools.producers["default"].acquire(timeout=30) if "held" in ways else None


class Handler(logging.Handler):
    def emit(self, record):
        pass

    def flush(self):
        last_words()


class Dies:
    def __del__(self):
        last_words()


if where == "logging":
    logging.getLogger().addHandler(Handler())
if where == "del":
    keep = Dies()
if "a thread with the lock" in ways:
    # In a namespace of its own: a thread that is stopped keeps what it knows, for ever.
    stays = {}
    exec("def stay(lock, taken, sleep):\n    with lock:\n        taken.set()\n        sleep(60)", stays)

    def take():
        taken = threading.Event()
        lock = pools.connections["default"].engine.lock
        threading.Thread(target=stays["stay"], args=(lock, taken, time.sleep), daemon=True).start()
        taken.wait()

    # In place of the pools' own exit handler, which would wait for the lock.
    from kombu_pools_ext.engine import shutdown

    atexit.unregister(shutdown.say_goodbye)
    atexit.register(take)
"""

# In a process of its own.
pytestmark = pytest.mark.threads


class Said:
    """What a program has said at its end, and how long it took for that."""

    def __init__(
        self, folder: Path, url: str, what: str, where: str, *ways: str, queue: str = "nobody"
    ) -> None:
        program = folder / "program.py"
        program.write_text(PROGRAM)
        arguments = {"url": url, "what": what, "where": where, "ways": ways, "queue": queue}
        self.process = subprocess.run(
            [sys.executable, str(program), json.dumps(arguments)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.process.returncode == 0, self.process.stderr
        assert self.process.stdout, self.process.stderr
        (line,) = self.process.stdout.splitlines()
        took, self.words = line.split(" ", 1)
        self.took = float(took)
        assert self.took < 5.0


@pytest.fixture(
    params=[
        pytest.param("amqp", marks=pytest.mark.broker),
        pytest.param("redis", marks=pytest.mark.redis),
    ]
)
def url(request: pytest.FixtureRequest) -> str:
    given: str = request.getfixturevalue(f"{request.param}_url")
    return given


@pytest.mark.parametrize("ways", [("used",), ()], ids=["used before", "not used before"])
@pytest.mark.parametrize("where", ["atexit", "logging"])
def test_exit_handlers_publish(url: str, tmp_path: Path, where: str, ways: tuple[str, ...]) -> None:
    name = f"last-words-{uuid.uuid4().hex}"
    with kombu.Connection(url) as connection:
        queue = kombu.Queue(name, channel=connection.default_channel, durable=False)
        queue.declare()
        try:
            said = Said(tmp_path, url, "publish", where, *ways, queue=name)
            count = 0
            while queue.get(no_ack=True) is not None:
                count += 1
        finally:
            queue.delete()
    if url.startswith("redis") and not ways and said.words != "done":
        # A newer client cannot be imported any more: what it imports registers exit handlers.
        assert said.words.startswith("BrokerUnreachable: pool 'redis://")
        assert "the interpreter is ending" in said.words
        assert count == 0
        return
    assert said.words == "done"
    assert count == 1 + len(ways)


@pytest.mark.parametrize("ways", [("used",), ()], ids=["used before", "not used before"])
@pytest.mark.parametrize("what", ["publish", "acquire", "ready"])
def test_what_asks_for_a_connection_after_that_is_refused_at_once(
    url: str, tmp_path: Path, what: str, ways: tuple[str, ...]
) -> None:
    said = Said(tmp_path, url, what, "del", *ways)
    # A pool that was never asked for has no other name yet.
    name = url.partition(":")[0] if ways and what != "acquire" else "default"
    assert said.words.startswith(f"PoolClosed: pool '{name}"), said.words
    assert "the interpreter is ending" in said.words
    assert said.process.stderr == ""


def test_a_held_producer_was_taken_back_by_then(url: str, tmp_path: Path) -> None:
    said = Said(tmp_path, url, "held", "del", "held")
    assert said.words.startswith("LeaseError: pool ")
    assert "was taken back by the exit handler of the pools" in said.words


@pytest.mark.parametrize(
    "what", ["publish", "acquire", "ready", "release", "close", "drain", "reset"]
)
def test_a_lock_that_a_stopped_thread_holds_is_not_waited_for(
    amqp_url: str, tmp_path: Path, what: str
) -> None:
    said = Said(tmp_path, amqp_url, what, "del", "used", "held", "a thread with the lock")
    refused = what in ("publish", "acquire", "ready")
    assert said.words.startswith("PoolClosed: pool " if refused else "done"), said.words


def test_a_silent_broker_costs_an_exit_handler_no_more_than_its_time_out(
    mute: Proxy, tmp_path: Path
) -> None:
    said = Said(tmp_path, f"amqp://{mute.address}//", "shortly", "atexit")
    # It may have been a thread that connects, or this one: both have the same words for it.
    assert said.words.startswith(("ConnectTimeout", "BrokerUnreachable")), said.words
    assert said.took < 3.0
