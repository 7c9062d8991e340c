"""Django's runserver and `flask run`, with and without their reloaders, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.brokers import PrivateRabbitMQ, free_port
from tests.integration.rig import PATIENCE, Log, Served, eventually, received

EXAMPLES = Path(__file__).parent.parent.parent / "docs" / "examples"
DJANGO = [str(EXAMPLES / "django_project" / "manage.py"), "runserver", "--skip-checks"]
FLASK = ["-m", "flask", "--app", str(EXAMPLES / "flask_app" / "app.py"), "run", "--port"]

pytestmark = pytest.mark.slow


def order(port: int, number: int) -> int:
    """Place an order with either example, and return it."""
    data = urllib.parse.urlencode({"order": number}).encode()
    url = f"http://127.0.0.1:{port}/orders/"
    browser = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with browser.open(url, data, timeout=PATIENCE) as response:
        assert response.status == 201
    return number


@pytest.mark.parametrize(
    "command",
    [DJANGO, [*DJANGO, "--noreload"], FLASK, [*FLASK[:-1], "--debug", "--port"]],
    ids=["runserver", "runserver-noreload", "flask-run", "flask-run-debug"],
)
def test_goodbyes(node: PrivateRabbitMQ, queue: str, tmp_path: Path, command: list[str]) -> None:
    port = free_port()
    address = str(port) if "flask" in command else f"127.0.0.1:{port}"
    environment = {
        "BROKER_URL": node.url,
        "ORDERS_QUEUE": queue,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    log = Log(node)
    with Served([sys.executable, *command, address], environment, tmp_path, port) as served:

        def listens() -> bool:
            assert served.process.poll() is None, served.log
            try:
                return order(port, 1) == 1
            except urllib.error.URLError as error:
                if isinstance(error.reason, ConnectionRefusedError):
                    return False
                raise

        eventually(listens, lambda: served.log)
        with ThreadPoolExecutor(4) as executor:
            assert list(executor.map(lambda n: order(port, n), range(2, 12))) == list(range(2, 12))
        # To all of its processes, as a terminal does it.
        os.killpg(served.process.pid, signal.SIGINT)
        served.ends()
    assert "Traceback" not in served.log, served.log
    log.assert_all_said_goodbye()
    assert len(received(node.url, queue, 11)) == 11
