"""The processes of `relay_process.py`, as whoever starts them sees them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any, Self

from tests.benchmarks.pythons import ROOT

from .place import Place

__all__ = ["RelayFailed", "RelayProcess"]

#: Seconds that a relay has to end.
PATIENCE = 30.0
#: Seconds until one that does not answer is killed.
LIMIT = 120.0


class RelayFailed(Exception):
    """A relay's process has ended; the message is the end of what it said."""


class RelayProcess:
    """One relay, which is ready when the block begins, and is ended with it.

    :param arguments: of `relay_process.py`.
    """

    def __init__(self, place: Place, *arguments: str) -> None:
        self._place = place
        self._arguments = arguments

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # closed at the block's end
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.outbox.relay_process", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env=self._place.environment(),
            text=True,
        )
        try:
            self._read()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def ask(self, order: str) -> None:
        """Have it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Wait for what it answers.

        :raises RelayFailed: if it has ended.
        """
        return json.loads(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        limit = threading.Timer(LIMIT, self._process.kill)
        limit.start()
        line = self._process.stdout.readline()
        limit.cancel()
        if not line:
            self._process.wait(PATIENCE)
            self._errors.seek(0)
            raise RelayFailed(f"the relay has ended: {self._errors.read()[-1000:]}")
        return line
