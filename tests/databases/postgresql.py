"""A PostgreSQL server of the tests' own."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..brokers.server import Server, Unavailable, fields_of, program
from .database import Database

__all__ = ["PrivatePostgreSQL"]

POSTGRESQL_START = 60.0
#: Debian keeps its programs away from PATH.
DEBIAN = Path("/usr/lib/postgresql")
#: Whom the programs run as where the tests are root's, because they refuse to be: the first that there is.
INSTEAD_OF_ROOT = ("postgres", "nobody")
USER = "postgres"


def startup_message() -> bytes:
    """What a client sends first."""
    said = f"user\0{USER}\0database\0postgres\0\0".encode()
    return (len(said) + 8).to_bytes(4, "big") + (3 << 16).to_bytes(4, "big") + said


def folders() -> list[str]:
    """Where its programs may lie; the newest release first."""
    found = sorted(
        DEBIAN.glob("*/bin"),
        key=lambda path: [int(n) for n in re.findall(r"\d+", path.parent.name)],
        reverse=True,
    )
    told = []
    if config := shutil.which("pg_config"):
        done = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)
        told = done.stdout.split("\n")[:1]
    return [*map(str, found), *told, "/usr/lib/postgresql/bin", "/opt/homebrew/bin"]


class PrivatePostgreSQL(Server):
    """A PostgreSQL server with data of its own, to which everybody on this machine may connect.

    `config` goes into its postgresql.conf, as in ``{"max_connections": "20"}``. What was committed outlasts a SIGKILL,
    as in production; `fsync=False` is for who measures something else.
    """

    name = "postgresql"
    start_timeout = POSTGRESQL_START
    greeting = startup_message()
    answer = b"R"  # how to authenticate; while it is starting it answers with an error
    stop_signal = signal.SIGINT  # SIGTERM would wait for the clients to leave

    def __init__(self, config: Mapping[str, str] | None = None, *, fsync: bool = True) -> None:
        super().__init__()
        self.config = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "shared_buffers": "64MB",
            "fsync": "on" if fsync else "off",
            **(config or {}),
        }

    @property
    def url(self) -> str:
        return Database("postgresql", "postgres", self.port, USER).url

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def make_folder(self) -> None:
        super().make_folder()
        if os.geteuid() == 0:
            self.runs_as = somebody()
            os.chown(self.folder, *self.runs_as)

    def command(self) -> list[str]:
        options = [part for key, value in self.config.items() for part in ("-c", f"{key}={value}")]
        return [program("postgres", *folders()), "-D", str(self.data), *options]

    def environment(self) -> dict[str, str]:
        """Without what would tell a client where its server is."""
        return {key: value for key, value in os.environ.items() if not key.startswith("PG")}

    def launch(self) -> None:
        if not self.data.exists():
            self.prepare(
                program("initdb", *folders()),
                f"--pgdata={self.data}",
                f"--username={USER}",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            )
        super().launch()

    def owns(self, fields: Sequence[str]) -> bool:
        """Each of its processes begins a process group of its own."""
        assert self.process is not None, "not started"
        return super().owns(fields) or int(fields[1]) == self.process.pid

    def kill(self) -> None:
        """SIGKILL to all of its processes, and wait until none is left: else it would not start again."""
        if self.process is None:
            return
        children = self._children() if self.running else []
        super().kill()
        while any(lives(pid) for pid in children):
            time.sleep(0.001)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None, "not started"
        # Else it would start others meanwhile, or stop them in an orderly way.
        self.process.send_signal(signal.SIGSTOP)
        for pid in self._children():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        self.process.send_signal(number)

    def _children(self) -> list[int]:
        assert self.process is not None, "not started"
        return [
            int(stat.parent.name)
            for stat in Path("/proc").glob("[0-9]*/stat")
            if (fields := fields_of(stat)) and int(fields[1]) == self.process.pid
        ]

    @contextmanager
    def database(self) -> Iterator[Database]:
        """An empty database with a name of its own, which is gone after the block."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            yield Database("postgresql", name, self.port, USER)
        finally:
            self.start()
            self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        """As the superuser, outside of a transaction."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())


def lives(pid: int) -> bool:
    """Whether a process has not ended; that nobody has asked for its end is no life."""
    found = fields_of(Path(f"/proc/{pid}/stat"))
    return bool(found) and found[0] not in "ZX"


def somebody() -> tuple[int, int]:
    """The user and the group of somebody who is not root.

    :raises Unavailable: if there is nobody.
    """
    for name in INSTEAD_OF_ROOT:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return found.pw_uid, found.pw_gid
    raise Unavailable(f"PostgreSQL refuses to be root's, and none of {INSTEAD_OF_ROOT} is a user")
