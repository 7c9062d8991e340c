"""`make demo` and `make serve`, and the examples that a reader copies."""

from __future__ import annotations

import http.cookiejar
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import kombu
import pytest
from amqp.exceptions import NotFound

from .rig import PATIENCE, eventually

EXAMPLES = Path(__file__).parent.parent.parent / "docs" / "examples"

pytestmark = pytest.mark.slow


def environment(tmp_path: Path, url: str) -> dict[str, str]:
    """For a child: the broker, and a folder of the test's own for temporary files."""
    others = {key: value for key, value in os.environ.items() if key != "BROKER_URL"}
    return {**others, "BROKER_URL": url, "TMPDIR": str(tmp_path)}


def demo(tmp_path: Path, url: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the demo, after what stands in *before*."""
    program = (
        f"import sys\nsys.path.insert(0, {str(EXAMPLES)!r})\nimport demo\n{textwrap.dedent(before)}"
    )
    return subprocess.run(
        [sys.executable, "-c", f"{program}\nsys.exit(demo.main())"],
        env=environment(tmp_path, url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )


@pytest.mark.parametrize("given", ["", "filesystem://"], ids=["default", "filesystem"])
def test_the_demo_without_a_broker(tmp_path: Path, given: str) -> None:
    check_demo(tmp_path, given, "filesystem://")


def test_the_demo_on_rabbitmq(tmp_path: Path, amqp_url: str) -> None:
    queue = check_demo(tmp_path, amqp_url, "amqp://")
    with kombu.Connection(amqp_url) as connection:
        with pytest.raises(NotFound):
            kombu.Queue(queue)(connection.default_channel).queue_declare(passive=True)


def test_the_demo_on_redis(tmp_path: Path, redis_url: str) -> None:
    queue = check_demo(tmp_path, redis_url, "redis://")
    with kombu.Connection(redis_url) as connection:
        assert connection.default_channel.client.keys(f"*{queue}*") == []


def check_demo(tmp_path: Path, url: str, shown: str) -> str:
    """Run the demo; returns the name that its queue had."""
    queue = f"orders-demo-{uuid.uuid4().hex}"
    done = demo(tmp_path, url, f"demo.queue_name = lambda: {queue!r}")
    assert done.returncode == 0, done.stdout
    summary = re.fullmatch(
        rf"demo: (\d+) messages from 4 workers of 2 applications through {shown}\S*, none lost, none twice",
        done.stdout.splitlines()[-1],
    )
    assert summary, done.stdout
    arrived = re.findall(r"(django|flask) +(\d+) @(\d+)", done.stdout)
    assert len(arrived) == len(set(arrived)) == int(summary[1]) >= 200
    assert len({worker for _, _, worker in arrived}) == 4
    status, reset = re.split(r"^\$ .*kombu.pools \w+\n", done.stdout, flags=re.MULTILINE)[1:]
    assert "$ python manage.py kombu_pools status\n" in done.stdout
    assert "$ flask --app app.py kombu-pools reset\n" in done.stdout
    workers = {worker for _, _, worker in arrived}
    assert set(re.findall(r":(\d+)  +gunicorn gthread worker .* default ", status)) == workers
    told = r":(\d+)  gunicorn gthread worker  default +closed [1-9]\d* idle connections?$"
    assert set(re.findall(told, reset, re.MULTILINE)) == workers
    assert "the relay runs, and the broker is away: all wait\n" in done.stdout
    assert re.search(r"^the broker is back: 1, 2, 3, .*, 20$", done.stdout, re.MULTILINE)
    assert not list(tmp_path.iterdir())
    return queue


@pytest.mark.parametrize(
    "spoil, told",
    [
        ("return None if body['order'] == 50 else take(self, body, message)", "lost: "),
        ("take(self, body, message); self._received *= 1 + (body['order'] == 50)", "twice, or "),
    ],
    ids=["lost", "twice"],
)
def test_the_demo_notices(tmp_path: Path, spoil: str, told: str) -> None:
    done = demo(
        tmp_path,
        "filesystem://",
        f"""
        demo.LOST = 2
        take = demo.Inbox._take
        def spoilt(self, body, message): {spoil}
        demo.Inbox._take = spoilt
        """,
    )
    assert done.returncode == 1, done.stdout
    assert f"\ndemo: failed: {told}" in done.stdout
    assert re.search(r"(django|flask) 50 of worker \d+", done.stdout.splitlines()[-1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url, told",
    [
        ("memory://", "memory:// stays within a process"),
        ("ampq://someone:s3cr3t@localhost//", "unknown transport"),
        ("amqp://someone:s3cr3t@127.0.0.1:1//", "the broker, amqp://someone:**@127.0.0.1:1//: "),
        ("redis://:s3cr3t@127.0.0.1:1/0", "the broker, redis://:**@127.0.0.1:1/0: "),
    ],
)
def test_a_broker_that_will_not_do(tmp_path: Path, url: str, told: str) -> None:
    done = demo(tmp_path, url)
    assert done.returncode == 1
    assert told in done.stdout
    assert "Traceback" not in done.stdout
    assert "s3cr3t" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_broken_application_is_told(tmp_path: Path) -> None:
    done = demo(tmp_path, "filesystem://", "demo.APPLICATIONS['django'] = ('.', 'nowhere', [])")
    assert done.returncode == 1
    assert "demo: failed: django did not answer" in done.stdout
    assert "No module named 'nowhere'" in done.stdout
    assert not list(tmp_path.iterdir())


class Served:
    """`make serve`: its output, line by line, and the addresses in it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pages: dict[str, str] = {}
        while match := re.match(r" *(django|flask) +(http://\S+)|", self.line()):
            if match[1]:
                self.pages[match[1]] = match[2]
            if len(self.pages) == 2:
                break

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def line_with(self, text: str) -> str:
        while line := self.line():
            if text in line:
                return line
        raise AssertionError(f"ended without {text!r}")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "demo.py"), "--serve"],
        env=environment(tmp_path, ""),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # Whatever the test waits for, it ends.
    watchdog = threading.Timer(120, process.terminate)
    watchdog.start()
    try:
        yield Served(process)
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait(PATIENCE)
        assert process.stdout
        process.stdout.close()


def test_publishing_from_the_pages(served: Served) -> None:
    for app, page in served.pages.items():
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        browser = urllib.request.build_opener(urllib.request.ProxyHandler({}), cookies)
        with browser.open(page, timeout=PATIENCE) as answer:
            form = answer.read().decode()
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
        assert bool(token) == (app == "django")
        fields = {"order": "77", **({"csrfmiddlewaretoken": token[1]} if token else {})}
        with browser.open(
            page, urllib.parse.urlencode(fields).encode(), timeout=PATIENCE
        ) as answer:
            assert answer.url == page  # redirected: a reload does not publish again
            told = re.search(r"Order 77 was published by worker (\d+)\.", answer.read().decode())
        assert told
        assert served.line_with("order 77") == f"  order 77 from {app}, worker {told[1]}\n"


def test_commands_of_either_application_reach_the_workers_of_both(
    served: Served, tmp_path: Path
) -> None:
    served.line_with("until Ctrl-C")
    programs = {
        "django": [str(EXAMPLES / "django_project" / "manage.py"), "kombu_pools"],
        "flask": ["-m", "flask", "--app", str(EXAMPLES / "flask_app" / "app.py"), "kombu-pools"],
    }
    told = [
        subprocess.run(
            [sys.executable, *program, command],
            env=environment(tmp_path, "filesystem://"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        ).stdout
        for program in programs.values()
        for command in ("status", "reset")
    ]
    workers = [set(re.findall(r":(\d+)  +gunicorn gthread worker ", one)) for one in told]
    assert len(workers[0]) == 4
    assert all(one == workers[0] for one in workers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_stays_behind(served: Served, tmp_path: Path, number: signal.Signals) -> None:
    served.line_with("until Ctrl-C")
    served.process.send_signal(number)
    assert served.process.wait(PATIENCE) == 0
    for page in served.pages.values():
        port = int(page.rstrip("/").rpartition(":")[2])
        # A worker that was killed with its server lets go of the port a moment later.
        eventually(lambda port=port: refuses(port))
    assert not list(tmp_path.iterdir())


def refuses(port: int) -> bool:
    """Whether nobody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # it ended just now
    return False


@pytest.mark.parametrize("app", ["django", "flask"])
def test_many_orders_through_one_producer(app: str, tmp_path: Path) -> None:
    requests = {
        "django": """
            import django
            django.setup()
            from django.test import Client
            client = Client(headers={"host": "localhost"})
            answer = client.post("/orders/up-to/", {"order": 5})
            assert answer.status_code == 201 and answer.json() == {"published": 5}, answer.content
            assert client.post("/orders/", {"order": "x"}).status_code == 400
            from django_app import connections
            """,
        "flask": """
            from app import create_app, pools
            app = create_app()
            answer = app.test_client().post("/orders/up-to/", data={"order": 5})
            assert answer.text == "1\\n2\\n3\\n4\\n5\\n", answer.text
            assert app.test_client().post("/orders/", data={"order": "x"}).status_code == 400
            app.app_context().push()
            connections = pools.connections
            """,
    }
    received = """
        with connections["default"].acquire(timeout=5) as connection:
            with connection.SimpleQueue("orders") as queue:
                got = [queue.get(timeout=5).payload["order"] for _ in range(5)]
        assert got == [1, 2, 3, 4, 5]
        """
    project = EXAMPLES / ("django_project" if app == "django" else "flask_app")
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(requests[app]) + textwrap.dedent(received)],
        env={
            **environment(tmp_path, "memory://"),
            "DJANGO_SETTINGS_MODULE": "settings",
            "DEBUG": "1",
            "PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")]),
        },
        check=True,
        timeout=100,
    )


@pytest.mark.parametrize("broker", ["memory", "amqp", "redis"])
def test_plain_python(request: pytest.FixtureRequest, tmp_path: Path, broker: str) -> None:
    url = "memory://" if broker == "memory" else request.getfixturevalue(f"{broker}_url")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "plain.py")],
        env=environment(tmp_path, url),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    orders = re.findall(r"order (\d) from plain", done.stdout)
    assert orders == ["1", "2", "3"]
