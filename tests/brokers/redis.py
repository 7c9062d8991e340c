"""A Redis server of the tests' own."""

from __future__ import annotations

import itertools

from .server import Server, program

__all__ = ["PrivateRedis"]

REDIS_START = 60.0


class PrivateRedis(Server):
    """A Redis server that keeps nothing on disk."""

    name = "redis-server"
    start_timeout = REDIS_START
    greeting = b"PING\r\n"
    answer = b"+PONG"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        redis_server = program("redis-server", "/usr/bin", "/usr/local/bin", "/opt/homebrew/bin")
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
