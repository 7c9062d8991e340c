"""The pools under gunicorn and uWSGI, and what the broker sees when these reload and end."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.brokers import PrivateRabbitMQ
from tests.integration.rig import LIMIT, Log, Served, eventually, family, received
from tests.integration.servers import WORKERS, gunicorn, under_uwsgi

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/net/tcp").exists(), reason="/proc tells whose a connection is"
    ),
]

REQUESTS = 60
#: How often what may go wrong at a start is tried.
STARTS = 3


def course(served: Served, port: int, *, reload: int = 0, graceful: bool = True) -> list[int]:
    """Under load, through a reload, and to the end with a request under way; the numbers that were published.

    :param port: the broker's.
    :param reload: how many new workers to wait for in a reload; 0 for none.
    :param graceful: end it with SIGTERM and a request under way; else with SIGINT and none.
    """
    numbers = list(range(1, REQUESTS + 1))
    with served.counting(port) as most:
        answers = served.publish_all(numbers)
    assert [one["number"] for one in answers] == numbers
    assert max(one["size"] for one in answers) <= LIMIT
    workers = {one["pid"] for one in answers}
    assert set(most) >= workers
    assert 1 <= max(most.values()) <= LIMIT
    if reload:
        before = family(served.process.pid)
        with served.holding(101) as held:
            served.signal(signal.SIGHUP)
        assert held[0].get("pid") in before, (held, served.log)
        served.wait_for_workers(reload, other_than=before)
        eventually(lambda: not workers.intersection(family(served.process.pid)), lambda: served.log)
        after = list(range(102, 112))
        served.publish_all(after)
        numbers += [101, *after]
    if graceful:
        with served.holding(112) as held:
            served.signal(signal.SIGTERM)
        assert held[0].get("number") == 112, (held, served.log)
        numbers.append(112)
    else:
        served.signal(signal.SIGINT)
    assert served.ends() == 0, served.log
    assert "Traceback" not in served.log, served.log
    return numbers


#: Options, and whether to reload: it takes a second each.
GUNICORN = {
    "sync": (["--worker-class", "sync"], True),
    "sync-preload": (["--worker-class", "sync", "--preload"], False),
    "gthread": (["--threads", "4"], False),
    "gthread-preload": (["--threads", "4", "--preload"], True),
    "gevent": (["--worker-class", "gevent"], False),
    "gevent-preload": (["--worker-class", "gevent", "--preload"], True),
}


@pytest.mark.parametrize("options, reload", GUNICORN.values(), ids=GUNICORN)
def test_gunicorn(
    node: PrivateRabbitMQ, queue: str, tmp_path: Path, options: list[str], reload: bool
) -> None:
    environment = {"SERVED_URL": node.url, "QUEUE": queue}
    # The process that forks the workers has a connection then.
    preload = "--preload" in options
    if preload:
        environment["FIRST"] = "1"
    log = Log(node)
    with gunicorn(environment, tmp_path, *options) as served:
        numbers = course(served, node.port, reload=int(reload))
    log.assert_all_said_goodbye()
    assert sorted(received(node.url, queue, len(numbers) + preload)) == [*([0] * preload), *numbers]


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


UWSGI = {
    "plain": ([], True),
    "lazy-apps": (["--lazy-apps"], False),
    "enable-threads": (["--enable-threads", "--skip-atexit-teardown"], False),
    "enable-threads-lazy-apps": (["--enable-threads", "--lazy-apps"], True),
    "threads": (["--threads", "4"], False),
    "threads-lazy-apps": (["--threads", "4", "--lazy-apps"], False),
}


@pytest.mark.parametrize("options, reload", UWSGI.values(), ids=UWSGI)
def test_uwsgi(
    node: PrivateRabbitMQ,
    queue: str,
    tmp_path: Path,
    uwsgi: list[str],
    options: list[str],
    reload: bool,
) -> None:
    environment = {"SERVED_URL": node.url, "QUEUE": queue}
    # The application is loaded by the process that forks the workers, and again by each reload.
    loads = 0 if "--lazy-apps" in options else 1 + reload
    if loads:
        environment["FIRST"] = "1"
    log = Log(node)
    with under_uwsgi(uwsgi, environment, tmp_path, *options) as served:
        version = re.search(r"Starting uWSGI ([\d.]+)", served.log)
        assert version
        # In older ones, threads that wait for requests keep uWSGI from a graceful end, and at another one a thread
        # may count as busy still, so that its worker runs no exit handlers.
        graceful = "--threads" not in options or _number(version[1]) >= (2, 0, 27)
        numbers = course(served, node.port, reload=WORKERS * reload, graceful=graceful)
    if graceful:
        log.assert_all_said_goodbye()
    else:
        eventually(lambda: not log.open, lambda: log.text)
    assert sorted(received(node.url, queue, len(numbers) + loads)) == [*([0] * loads), *numbers]


def test_uwsgi_without_threads_replaces_what_died_while_idle(
    node: PrivateRabbitMQ, queue: str, tmp_path: Path, uwsgi: list[str]
) -> None:
    # Seconds: the broker gives up after two of them, and a thread may get no turn for one or two.
    environment = {"SERVED_URL": node.url, "QUEUE": queue, "HEARTBEAT": "3"}
    threads = ["--enable-threads"]
    log_of_threads = Log(node)
    (tmp_path / "threads").mkdir()
    with under_uwsgi(uwsgi, environment, tmp_path / "threads", *threads) as with_threads:
        with_threads.publish_all(range(5))
        kept_alive = eventually(lambda: log_of_threads.open)
        with under_uwsgi(uwsgi, environment, tmp_path) as without:
            if "threads support is disabled" not in without.log:
                pytest.skip("no uWSGI without threads here: from 2.0.27 on it always runs them")
            log = Log(node)
            first = without.publish_all(range(5, 10))
            # Nothing runs in a worker that waits for requests, so nobody sends heartbeats.
            eventually(lambda: log.accepted and not log.open, lambda: log.text)
            assert log.mourned == log.accepted
            assert "missed heartbeats from client" in log.text
            second = without.publish_all(range(10, 15))
            without.signal(signal.SIGTERM)
            assert without.ends() == 0, without.log
        # The other one has been idle for longer.
        assert log_of_threads.open >= kept_alive, log_of_threads.text
        with_threads.signal(signal.SIGTERM)
        assert with_threads.ends() == 0, with_threads.log
    assert "Traceback" not in without.log + with_threads.log
    assert {one["size"] for one in first + second} == {1}
    assert sorted(received(node.url, queue, 15)) == list(range(15))


def test_no_worker_of_uwsgi_hangs_whatever_was_published_at_import(
    tmp_path: Path, uwsgi: list[str]
) -> None:
    # uWSGI forks whatever runs: a worker that is forked while another thread has the interpreter waits for it for good.
    threads = ["--enable-threads"]
    for start in range(STARTS):
        folder = tmp_path / str(start)
        folder.mkdir()
        with under_uwsgi(uwsgi, {}, folder, *threads, module="publishes_at_import") as served:
            answer = served.get("/")
        assert "Traceback" not in served.log
        assert answer["at_import"] == ["MainThread"]
        assert "kombu-pools-maintenance" in answer["threads"]
