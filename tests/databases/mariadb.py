"""A MariaDB server of the tests' own."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ..brokers.server import Server, program
from .database import Database

__all__ = ["PrivateMariaDB"]

MARIADB_START = 60.0
FOLDERS = ("/usr/sbin", "/usr/libexec", "/usr/bin", "/opt/homebrew/bin")
USER = "root"


class PrivateMariaDB(Server):
    """A MariaDB server with data of its own, to which everybody on this machine may connect.

    `config` becomes options of its command line, as in ``{"innodb-lock-wait-timeout": "2"}``. What was committed
    outlasts a SIGKILL, as in production; `fsync=False` is for who measures something else.
    """

    name = "mariadb"
    start_timeout = MARIADB_START

    def __init__(self, config: Mapping[str, str] | None = None, *, fsync: bool = True) -> None:
        super().__init__()
        self.config = {
            "port": str(self.port),
            "bind-address": "127.0.0.1",
            "skip-name-resolve": "ON",
            "character-set-server": "utf8mb4",
            # Text is compared without its case, as where nobody has asked for something else.
            "collation-server": "utf8mb4_general_ci",
            "innodb-buffer-pool-size": "64M",
            "innodb-log-file-size": "48M",
            "innodb-flush-log-at-trx-commit": "1" if fsync else "0",
            "max-allowed-packet": "64M",
            **(config or {}),
        }

    @property
    def url(self) -> str:
        return Database("mysql", "mysql", self.port, USER).url

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def command(self) -> list[str]:
        return [
            program("mariadbd", *FOLDERS),
            *self._common(),
            f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
            *(f"--{key}={value}" for key, value in self.config.items()),
        ]

    def _common(self) -> list[str]:
        # Root has to say that it means it.
        user = ["--user=root"] if os.geteuid() == 0 else []
        return ["--no-defaults", f"--datadir={self.data}", *user]

    def environment(self) -> dict[str, str]:
        """Without what would tell a client where its server is."""
        return {key: value for key, value in os.environ.items() if not key.startswith("MYSQL")}

    def launch(self) -> None:
        if not self.data.exists():
            self.prepare(
                program("mariadb-install-db", *FOLDERS),
                *self._common(),
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--skip-name-resolve",
            )
        super().launch()

    def answers(self) -> bool:
        """The server speaks first: a packet with the version of its protocol."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as peer:
                return peer.recv(16)[4:5] == b"\x0a"
        except OSError:
            return False

    @contextmanager
    def database(self) -> Iterator[Database]:
        """An empty database with a name of its own, which is gone after the block."""
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            yield Database("mysql", name, self.port, USER)
        finally:
            self.start()
            self.execute(f"DROP DATABASE IF EXISTS {name}")

    def execute(self, statement: str) -> None:
        """As the superuser."""
        with Database("mysql", "mysql", self.port, USER).connect(autocommit=True) as connection:
            with connection.cursor() as cursor:
                cursor.execute(statement)
