"""The servers of a run: RabbitMQ, with STOMP where its plugin is installed, and two of PostgreSQL."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import kombu

from tests.brokers import PrivateRabbitMQ, free_port
from tests.brokers.server import Server, fields_of
from tests.databases import PrivatePostgreSQL

from .place import Place

__all__ = ["Servers", "processor_of"]

STOMP = "rabbitmq_stomp"
POSTGRESQL = {"shared_buffers": "128MB", "max_wal_size": "2GB"}
#: For the table of ten million rows: what is filled in the transaction that made it is not logged as well.
FOR_MANY_ROWS = {
    **POSTGRESQL,
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "maintenance_work_mem": "256MB",
}
#: Of what /proc tells of a process: its own time as a user and in the kernel, and that of children that have ended.
TIMES = slice(11, 15)


class Servers:
    """Starts the servers; ends them when the block ends. Both databases sync what was committed to the disk.

    :raises Unavailable: if RabbitMQ or PostgreSQL cannot be started.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            plain = PrivateRabbitMQ()
            self.stomp_port = free_port() if plain.has_plugin(STOMP) else None
            config = {"log.console.level": "error"}
            if self.stomp_port:
                config["stomp.listeners.tcp.1"] = f"127.0.0.1:{self.stomp_port}"
            self.rabbitmq = stack.enter_context(
                PrivateRabbitMQ(config, plugins=[STOMP] if self.stomp_port else [])
            )
            self.postgresql = stack.enter_context(PrivatePostgreSQL(POSTGRESQL))
            database = stack.enter_context(self.postgresql.database())
            self.place = Place(self.rabbitmq.url, self.stomp_port, database)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def for_many_rows(self) -> PrivatePostgreSQL:
        """A PostgreSQL that is not started yet, into which ten million rows go in a minute."""
        return PrivatePostgreSQL(FOR_MANY_ROWS)

    def versions(self) -> dict[str, str]:
        """Of the servers."""
        import psycopg

        with psycopg.connect(self.postgresql.url) as connection:
            (version,) = connection.execute("SHOW server_version").fetchone() or ("",)
        return {
            "RabbitMQ": self.rabbitmq.ctl("version").strip(),
            "PostgreSQL": str(version).split()[0],
        }

    # -- queues ------------------------------------------------------------------------------------

    def declare(self, queue: str) -> None:
        """Have an empty durable queue of that name."""
        with kombu.Connection(self.rabbitmq.url) as connection:
            channel: Any = connection.default_channel
            channel.queue_declare(queue, durable=True, auto_delete=False)
            channel.queue_purge(queue)

    def count(self, queue: str) -> int:
        """Return how many messages it has."""
        with kombu.Connection(self.rabbitmq.url) as connection:
            channel: Any = connection.default_channel
            return int(channel.queue_declare(queue, passive=True).message_count)


def processor_of(server: Server) -> float:
    """Seconds that the processors have worked for the processes of *server*, as far as the system tells."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = fields_of(stat)
        if fields and server.owns(fields):
            ticks += sum(map(int, fields[TIMES]))
    return ticks / os.sysconf("SC_CLK_TCK")
