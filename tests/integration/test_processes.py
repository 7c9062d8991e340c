"""Processes that publish and are no web servers: Celery's prefork pool, and the children of multiprocessing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.brokers import PrivateRabbitMQ
from tests.integration.rig import HERE, LIMIT, PATIENCE, Log, Served, Tasks, eventually, received

pytestmark = pytest.mark.slow


@pytest.mark.skipif(
    not Path("/proc/self/net/tcp").exists(), reason="/proc tells whose a connection is"
)
def test_celery_prefork(node: PrivateRabbitMQ, queue: str, tmp_path: Path) -> None:
    numbers = list(range(1, 21))
    log = Log(node)
    with Tasks(tmp_path) as tasks:
        for number in numbers:
            tasks.send("publish", number)
        environment = {**tasks.environment, "SERVED_URL": node.url, "QUEUE": queue, "FIRST": "1"}
        with Served([*tasks.command], environment, tmp_path, 0) as served:
            with served.counting(node.port) as most:
                eventually(
                    lambda: served.log.count(" succeeded in ") >= len(numbers), lambda: served.log
                )
            file = tmp_path / "held"
            tasks.send("hold", 21, str(file))
            eventually(file.exists, lambda: served.log)
            served.signal(signal.SIGTERM)
            file.unlink()
            assert served.ends() == 0, served.log
    assert len(most) >= 3
    assert 1 <= max(most.values()) <= LIMIT
    assert "Traceback" not in served.log, served.log
    log.assert_all_said_goodbye()
    assert sorted(received(node.url, queue, 22)) == [0, *numbers, 21]


PROGRAM = """
import multiprocessing, sys
import served

def work(number):
    for one in range(5):
        served.publish(10 * number + one)

def main():
    leases = [served.pools.producers["default"].acquire(timeout=30) for _ in range(3)]
    for lease in leases:
        lease.release()
    context = multiprocessing.get_context(sys.argv[1])
    children = [context.Process(target=work, args=(number,)) for number in range(1, 4)]
    for child in children:
        child.start()
    work(0)
    for child in children:
        child.join(30)
        assert child.exitcode == 0, child.exitcode
    assert served.pools.connections["default"].stats().opened == 3

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(node: PrivateRabbitMQ, queue: str, tmp_path: Path, method: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    search = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    log = Log(node)
    done = subprocess.run(
        [sys.executable, str(program), method],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(search),
            "SERVED_URL": node.url,
            "QUEUE": queue,
            "LIMIT": str(LIMIT),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    # Three of the parent's, one of each child's.
    eventually(lambda: len(log.accepted) == 6, lambda: log.text)
    log.assert_all_said_goodbye()
    expected = [10 * number + one for number in range(4) for one in range(5)]
    assert sorted(received(node.url, queue, len(expected))) == expected
