"""The demo in full flow, and its broker restarted meanwhile: no request fails, no message is lost."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.brokers import PrivateRabbitMQ

from .rig import eventually
from .test_demo import EXAMPLES, environment

pytestmark = pytest.mark.slow

#: Orders of each application in the first round.
ORDERS = 1000
#: Messages after which the broker is ended: few enough that most of the first round is to come.
FLOWING = ORDERS // 4
#: Seconds for the whole demo; twenty are usual.
WATCHDOG = 200.0


def test_restarting_the_broker_costs_no_error(node: PrivateRabbitMQ, tmp_path: Path) -> None:
    program = (
        f"import sys\nsys.path.insert(0, {str(EXAMPLES)!r})\nimport demo\n"
        f"demo.FIRST, demo.WHOLE = {ORDERS}, {WATCHDOG}\nsys.exit(demo.main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment(tmp_path, node.url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output: list[str] = []

    def read() -> None:
        assert process.stdout
        with process.stdout:
            output.extend(process.stdout)

    def arrived() -> int:
        return len(re.findall(r"(?:django|flask) +\d+ @\d+", "".join(output)))

    reader = threading.Thread(target=read)
    reader.start()
    # Whatever happens, it ends.
    watchdog = threading.Timer(WATCHDOG, process.terminate)
    watchdog.start()
    try:
        eventually(lambda: arrived() > FLOWING or process.poll() is not None, lambda: output)
        node.stop()
        before = arrived()
        node.start()
        reader.join()
        told = "".join(output)
        assert process.wait() == 0, told
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait(20)
        reader.join()
    assert FLOWING < before < 2 * ORDERS, "the broker was not restarted in full flow"
    # The demo fails for a request that failed, a message that is missing, and one that comes twice with another id.
    assert re.search(r"\ndemo: (\d+) messages from 4 workers .*, none lost, none twice\n$", told)
    assert arrived() >= 2 * ORDERS
