"""A Django view that publishes one message, served by gunicorn and loaded by wrk."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.brokers import free_port
from tests.from_debian import find_wrk

from .case import OURS, Contender, Missing, Setting, peer, register
from .lease_cases import KOMBU
from .measure import Round
from .peers import PIKA
from .pythons import ROOT
from .ways import AMQPSTORM_SHARED, BARE, CELERY, OVER_LEASES

__all__ = ["BUSY_LOOPS", "THREADS", "Answered", "Load", "busy_loops", "served"]

#: Threads of the worker, and requests at a time.
THREADS = 32
#: Other programs that want a processor, where the machine is busy.
BUSY_LOOPS = 2
#: Seconds within which a server starts, and a request is answered, on a busy machine.
PATIENCE = 60
#: Seconds that a server has for its end.
GRACE = 10
#: Seconds of a load that only opens connections.
WARM_UP = 1

#: wrk runs this at its end. It counts microseconds.
REPORT = """
done = function(summary, latency, requests)
  local failed = 0
  for _, count in pairs(summary.errors) do failed = failed + count end
  io.write(string.format('RESULT {"requests": %d, "seconds": %f, "p99": %f, "failed": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(99) / 1e3, failed))
end
"""
#: Ends by itself, should nobody end it.
BUSY = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"


class Answered(NamedTuple):
    """The requests of a load: how many, how many a second, and the 99th percentile of their time in ms."""

    count: int
    rate: float
    p99: float


class Load:
    """Loads a URL with wrk, from as many connections as the worker has threads.

    :raises Missing: if there is no wrk.
    """

    def __init__(self) -> None:
        wrk = find_wrk()
        if wrk is None:
            raise Missing(
                "wrk is neither installed nor fetched: `make .venv/wrk/.fetched` fetches it"
            )
        self._wrk = wrk

    def __call__(self, url: str, seconds: float) -> Answered:
        """Ask again and again.

        :param seconds: is rounded to whole ones.
        :raises RuntimeError: if a request fails.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(REPORT)
            script.flush()
            lasting = ("--duration", f"{max(1, round(seconds))}s", "--timeout", f"{PATIENCE}s")
            done = subprocess.run(
                [
                    *(self._wrk, "--threads", "1", "--connections", str(THREADS)),
                    *(*lasting, "--script", script.name, url),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        found = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"wrk says nothing of the requests: {done.stdout}")
        told = json.loads(found[1])
        if told["failed"]:
            raise RuntimeError(f"{told['failed']} of {told['requests']} requests failed")
        return Answered(told["requests"], told["requests"] / told["seconds"], told["p99"])


@contextmanager
def served(way: str, setting: Setting) -> Iterator[str]:
    """The URL of the view that publishes in this way, served by one worker.

    :raises Missing: if a package that this takes is not installed.
    :raises RuntimeError: if the server does not start; with what it said.
    """
    for package in ("gunicorn", "django"):
        peer(package)
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    command = [
        *(sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", "1"),
        *("--worker-class", "gthread", "--threads", str(THREADS), "--log-level", "warning"),
        *("--no-control-socket", "tests.benchmarks.view_app:application"),
    ]
    here = {"BENCH_WAY": way, "BENCH_URL": setting.url, "BENCH_QUEUE": setting.queue}
    leave_out = ("GUNICORN_CMD_ARGS", "DJANGO_SETTINGS_MODULE")
    inherited = {key: value for key, value in os.environ.items() if key not in leave_out}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=inherited | here,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            if not answers(url, process):
                log.seek(0)
                raise RuntimeError(f"gunicorn does not serve the view: {log.read()[-1000:]}")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether a server publishes, once it has started."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            get(url)
        except urllib.error.HTTPError:
            return False
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


def get(url: str) -> str:
    """The text at *url*."""
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        text: str = answer.read().decode()
    return text


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Within, so many other programs never wait."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def view(way: str, *, busy: int) -> Contender:
    """Requests to the view, with so many busy loops beside it."""

    @contextmanager
    def contender(setting: Setting) -> Iterator[Round]:
        load = Load()
        with served(way, setting) as url:
            load(url, WARM_UP)

            def round_() -> dict[str, float]:
                used = float(get(f"{url}processor"))
                with busy_loops(busy):
                    answered = load(url, setting.load)
                used = float(get(f"{url}processor")) - used
                return {
                    "requests": answered.rate,
                    "p99": answered.p99,
                    "processor": used / answered.count * 1e6,
                }

            yield round_

    return contender


for name, busy, beside in (
    ("shared.view", 0, ""),
    ("shared.view.busy", BUSY_LOOPS, f", beside {BUSY_LOOPS} busy loops"),
):
    register(
        name,
        f"a Django view with one publish, gunicorn, {THREADS} threads{beside}",
        "amqp",
        {
            way: view(way, busy=busy)
            for way in (OURS, OVER_LEASES, KOMBU, PIKA, AMQPSTORM_SHARED, CELERY, BARE)
        },
        figures={
            "requests": "requests/s",
            "p99": "ms, p99 of a request",
            "processor": "µs of the worker's processor time a request",
            "above": "µs of it above the view without a publish",
        },
        rounds=5,
        bare=BARE,
    )
