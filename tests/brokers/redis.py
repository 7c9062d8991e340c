"""A Redis server of the tests' own."""

from __future__ import annotations

import itertools

from .server import Server, asked_for, program, root_of

__all__ = ["PrivateRedis"]

REDIS_START = 60.0


class PrivateRedis(Server):
    """A Redis server that keeps nothing on disk.

    `release` is one that `make brokers` has fetched, as "8.0"; without it the one of the environment variable REDIS,
    and where that is unset the one that is installed.
    """

    name = "redis-server"
    start_timeout = REDIS_START
    greeting = b"PING\r\n"
    answer = b"+PONG"

    def __init__(self, *, release: str | None = None) -> None:
        super().__init__()
        self.release = release or asked_for("redis")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        folders = ["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"]
        if self.release is not None:
            folders = [str(root_of("redis", self.release) / "usr" / "bin")]
        redis_server = program("redis-server", *folders)
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
            "dir": self.folder,
        }
        return [
            redis_server,
            *itertools.chain.from_iterable(
                (f"--{key}", str(value)) for key, value in options.items()
            ),
        ]

    def list_connections(self) -> list[dict[str, str]]:
        """What `CLIENT LIST` tells of each client, the asking one left out."""
        import redis

        with redis.Redis(
            port=self.port, client_name="list_connections", decode_responses=True
        ) as client:
            return [row for row in client.client_list() if row["name"] != "list_connections"]
