"""Where the demo's messages arrive: a queue of its own on the broker, and a consumer on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from kombu import Queue

from kombu_pools_ext import PoolSettings

__all__ = ["Inbox", "Trouble"]


#: Seconds that a broker may be away while the demo runs, and between two attempts to find it again.
PATIENCE, AGAIN = 30.0, 0.2


class Trouble(Exception):
    """What went wrong, for people to read."""


class Inbox:
    """A queue that exists while the demo runs, and what was received from it.

    A message that comes a second time, with the ``message_id`` it had the first time, is dropped, as a consumer should
    do. When the broker is restarted the inbox waits for it, and goes on.

    :param url: of the broker.
    :param folder: where applications on ``filesystem://`` run, and so put their messages.
    :param queue: its name, which nobody else uses.
    """

    def __init__(self, url: str, folder: Path, queue: str) -> None:
        self._outbox = folder / "data_out"
        self._ready = folder / "ready"
        options = {}
        if url.startswith("filesystem:"):
            # Applications need `data_in` to declare the queue.
            for path in (self._outbox, self._ready, folder / "data_in", folder / "processed"):
                path.mkdir()
            options = {
                "data_folder_in": str(self._ready),
                "data_folder_out": str(self._ready),
                "control_folder": str(folder / "control"),
                "store_processed": True,
                "processed_folder": str(folder / "processed"),
            }
        self._on_files = bool(options)
        settings = PoolSettings.of(url=url, transport_options=options)
        self._uri = settings.uri
        self._connection = settings.connection()
        self._queue = Queue(queue)
        self._received: list[dict[str, Any]] = []
        self._seen: set[str] = set()

    def __enter__(self) -> Self:
        try:
            with self._watched():
                self._consume()
        except BaseException:
            self._connection.collect()
            raise
        return self

    def _consume(self) -> None:
        channel = self._connection.channel()
        self._bound = self._queue(channel)
        self._bound.declare()
        consumer = self._connection.Consumer([self._bound], channel=channel, callbacks=[self._take])
        consumer.consume()

    def __exit__(self, *exc: object) -> None:
        # Of a connection that broke nothing is expected any more.
        with self._connection, contextlib.suppress(*self._connection.connection_errors):
            self._bound.purge()
            self._bound.delete()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        errors = (*self._connection.connection_errors, *self._connection.channel_errors)
        try:
            yield
        except errors as error:
            raise Trouble(f"the broker, {self._uri}: {type(error).__name__}: {error}") from error

    def _take(self, body: dict[str, Any], message: Any) -> None:
        message_id = message.properties["message_id"]
        if message_id not in self._seen:
            self._seen.add(message_id)
            self._received.append(body)
        message.ack()

    def receive(self, seconds: float) -> list[dict[str, Any]]:
        """What arrives next, waiting for it at most so long: one message, seldom more, or none."""
        if self._on_files:
            self._hand_over()
        self._received = []
        try:
            with contextlib.suppress(TimeoutError):
                self._connection.drain_events(timeout=seconds)
        except self._connection.connection_errors:
            self._find_again()
        return self._received

    def _find_again(self) -> None:
        ends = time.monotonic() + PATIENCE
        while True:
            self._connection.collect()
            try:
                with self._watched():
                    self._consume()
                return
            except Trouble:
                if time.monotonic() > ends:
                    raise
            time.sleep(AGAIN)

    def _hand_over(self) -> None:
        # kombu's filesystem transport creates a message's file, locks it, writes it with one write() and unlocks it.
        # A consumer may come before that write, and takes an empty message away. Under the lock, whatever has begun
        # is complete.
        for path in sorted(self._outbox.iterdir()):
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                complete = os.fstat(file.fileno()).st_size > 0
            if complete:
                path.rename(self._ready / path.name)
