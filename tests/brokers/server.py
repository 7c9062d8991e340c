"""A server process that the tests own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Self

from ..from_debian import BROKERS

__all__ = [
    "Server",
    "Unavailable",
    "asked_for",
    "fields_of",
    "free_port",
    "program",
    "root_of",
    "speaks",
]


class Unavailable(Exception):
    """The server's programs are not installed, or did not start; the message says which."""


#: What keeps the ports that were given away from being given to others.
_kept: list[socket.socket] = []


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nobody listens, nor will, but for the server that is told of it.

    On Linux it stays taken as long as this process lives: a server that allows the address to be reused, as they all
    do, may listen on it, again and again, while no process is given it that asks for any port, for a server of its own
    or for a connection. Elsewhere it is free now, and that is all.
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    port = int(probe.getsockname()[1])
    if sys.platform == "linux":
        _kept.append(probe)
    else:
        probe.close()
    return port


def asked_for(broker: str) -> str | None:
    """The release that the tests are to run on (RABBITMQ=4.0, REDIS=8.0), or None for the one that is installed."""
    return os.environ.get(broker.upper()) or None


def root_of(broker: str, release: str) -> Path:
    """Where a release lies that `make brokers` has fetched.

    :raises Unavailable: if it has not.
    """
    root = BROKERS / f"{broker}-{release}"
    if not root.is_dir():
        raise Unavailable(f"{broker} {release} is not there: `make brokers` fetches it")
    return root


def program(name: str, *folders: str) -> str:
    """Where a program lies: in one of *folders*, else on PATH.

    :raises Unavailable: if nowhere.
    """
    for folder in folders:
        found = shutil.which(name, path=folder)
        if found:
            return found
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is not installed")
    return found


def speaks(port: int, greeting: bytes, answer: bytes) -> bool:
    """Whether somebody on that port answers a greeting so."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as peer:
            peer.sendall(greeting)
            return peer.recv(16).startswith(answer)
    except OSError:
        return False


def fields_of(stat: Path) -> list[str]:
    """What a file ``stat`` of /proc tells of a process, from its state on; nothing of one that has ended."""
    try:
        return stat.read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Server:
    """A server process in a process group and a temporary folder of its own."""

    name: str
    start_timeout: float
    greeting: bytes
    answer: bytes
    #: Asks it to close its connections and to end.
    stop_signal = signal.SIGTERM
    #: Who runs it, as (user, group); None for whoever runs the tests.
    runs_as: tuple[int, int] | None = None

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path()
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.make_folder()
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def make_folder(self) -> None:
        """Where it keeps everything, until the end."""
        self.folder = Path(tempfile.mkdtemp(prefix=f"private-{self.name}-"))

    def __exit__(self, *exc: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on port {self.port}, {'running' if self.running else 'stopped'}>"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def start(self) -> None:
        """Start the server, and return when it answers. Raises `Unavailable` with the end of its log."""
        if not self.running:
            self.launch()
            self.wait_until(self.answers)

    def answers(self) -> bool:
        return speaks(self.port, self.greeting, self.answer)

    def launch(self) -> None:
        """Start the server, and don't wait for it."""
        assert self.folder != Path(), "its folder is made by `with`; else this one would be filled"
        with (self.folder / "output.log").open("ab") as log:
            self.process = self._popen(self.command(), log)

    def prepare(self, *command: str) -> None:
        """Run a program that ends by itself, as the server would be run. Raises `Unavailable` with what it says."""
        output = self.folder / "output.log"
        with output.open("ab") as log:
            code = self._popen(command, log).wait(self.start_timeout)
        if code:
            said = output.read_text(errors="replace")
            raise Unavailable(f"{Path(command[0]).name} ended with {code}:\n{said[-2000:]}")

    def _popen(self, command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        user, group = self.runs_as or (None, None)
        return subprocess.Popen(
            command,
            env=self.environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
        )

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait for what a server that was started comes to. Raises `Unavailable` with the end of its log."""
        deadline = time.monotonic() + self.start_timeout
        while not ready():
            if not self.running or time.monotonic() > deadline:
                what = (
                    "ended"
                    if not self.running
                    else f"did not answer within {self.start_timeout:.0f} s"
                )
                log = (self.folder / "output.log").read_text(errors="replace")
                self.kill()
                raise Unavailable(f"{self.name} {what}:\n{log[-2000:]}")
            time.sleep(0.05)

    def stop(self, timeout: float = 30.0) -> None:
        """Let the server close its connections and end; kill it when that takes more than `timeout` seconds."""
        if self.process is None or not self.running:
            return
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL: the peers' sockets get a FIN or RST from the kernel, and no word of the protocol."""
        if self.process is None:
            return
        if self.running:
            self._signal(signal.SIGKILL)
        self.process.wait(60)

    def restart(self) -> None:
        """Stop, and start on the same port with the same data."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop the process where it stands: peers see a silent server, connections stay open."""
        self._signal(signal.SIGSTOP)
        # A thread goes on until it is told: what comes just now may still be answered.
        while not self._stands_still():
            time.sleep(0.001)

    def _stands_still(self) -> bool:
        """Whether every thread of its processes has stopped, as far as the system tells."""
        for state in Path("/proc").glob("[0-9]*/task/*/stat"):
            found = fields_of(state)
            if found and self.owns(found) and found[0] not in "TtZX":
                return False
        return True

    def owns(self, fields: Sequence[str]) -> bool:
        """Whether a process is one of its own: *fields* are its state, its parent, its group."""
        assert self.process is not None, "not started"
        return int(fields[2]) == self.process.pid

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None, "not started"
        os.killpg(self.process.pid, number)
