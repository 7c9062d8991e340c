"""Relays as processes that a test may kill, freeze and start again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from tests.databases import Database

__all__ = ["LEASE", "RelayProcess"]

#: Seconds for which their claimed rows are theirs: little more than a publish may take there.
LEASE = 4.0
#: Seconds that a relay has to start, and to end.
PATIENCE = 120.0


class RelayProcess:
    """One relay.

    :param log: where its output goes.
    """

    def __init__(self, broker: str, database: Database, log: Path) -> None:
        self.log = log
        self._command = [
            *(sys.executable, "-m", "tests.outbox.relay_process", broker, database.url),
            *(f"lease={LEASE}", "poll=0.2"),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it; it runs when this returns."""
        with self.log.open("ab") as out:
            before = out.tell()
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[2],
            )
        deadline = time.monotonic() + PATIENCE
        while b"the relay is running" not in self.log.read_bytes()[before:]:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.01)

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.signal(signal.SIGTERM)
        code: Any = self.process.wait(PATIENCE)
        return int(code)

    def kill(self) -> None:
        """SIGKILL, also to a frozen one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE)
