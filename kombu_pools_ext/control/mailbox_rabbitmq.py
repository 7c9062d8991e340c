"""A mailbox on RabbitMQ: queues that belong to the connection, bound to an exchange that is always there.

All of a project's queues are bound to ``amq.direct`` with one routing key, so each gets what is sent by it: a fanout,
without an exchange that could be left behind. Who has joined also consumes from one queue that all share and nobody
sends to, the roll: its consumers are what RabbitMQ can count.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from amqp.exceptions import ChannelError, NotFound

from .mailbox import ANSWER, PREFIX, Lost, Mailbox
from .seal import LARGEST, WINDOW

__all__ = ["RabbitMailbox"]

EXCHANGE = "amq.direct"
#: What is kept for a process that does not read: no command for longer than it holds, and not many.
_LIMITS = {
    "x-message-ttl": int(WINDOW * 1000),
    "x-max-length": 1000,
    "x-max-length-bytes": 2 * LARGEST,
}
#: It goes with its last consumer; and if the first one died before it was one, after a minute. Durable, for RabbitMQ
#: gives up queues that are neither that nor one connection's own.
_ROLL = {"durable": True, "auto_delete": True, "arguments": {"x-expires": 60_000}}
#: Parts of a heartbeat's interval between two of ours, and intervals of silence after which the broker is gone.
BEATS, SILENT_FOR = 3, 2
#: Seconds between two looks at a connection without heartbeats.
LONGEST_NAP = 60.0
#: Seconds between two attempts to be entered in a roll whose node is down.
ENROL_AGAIN = 5.0
#: Seconds for the rest of what has begun to come, before somebody else is looked after.
A_MOMENT = 0.2


class RabbitMailbox(Mailbox):
    """See the module."""

    def _prepare(self) -> None:
        vhost = self._connection.virtual_host or "/"
        self.place = f"amqp {vhost}"
        self._key = f"{PREFIX}.{self._project}"
        self._roll = f"{self._key}.roll"
        established = self._connection.established
        established.on_blocked = self._on_blocked
        established.on_unblocked = self._on_unblocked
        self._heard = time.monotonic(), established.bytes_recv
        self._channel: Any = self._connection.channel()
        #: When to enter the roll again, in seconds of ``time.monotonic``; never, while we are on it.
        self._enrol_at = float("inf")

    def join(self) -> None:
        with self._within(ANSWER):
            name = f"{self._key}.{secrets.token_hex(8)}"
            self._listen_on(name, self._key, _LIMITS)
            # Counted last, when it can be reached.
            self._enrol()

    def await_answers(self) -> None:
        name = f"{self._key}.answers.{secrets.token_hex(16)}"
        with self._within(ANSWER):
            self._listen_on(name, name, {})
        self.address = name

    def send_to_all(self, data: bytes) -> int | None:
        with self._within(ANSWER):
            count = self._count()
            self._publish(self._key, data)
        return count

    def send(self, address: str, data: bytes) -> None:
        with self._within(ANSWER):
            self._publish(address, data)

    def _listen_on(self, name: str, key: str, limits: dict[str, int]) -> None:
        channel = self._channel
        channel.queue_declare(name, exclusive=True, auto_delete=True, arguments=limits)
        channel.queue_bind(name, EXCHANGE, key)
        channel.basic_consume(name, no_ack=True, callback=self._on_message)

    def _enrol(self) -> None:
        channel = self._connection.channel()
        try:
            channel.queue_declare(self._roll, **_ROLL)
            channel.basic_consume(
                self._roll, no_ack=True, callback=_ignore, on_cancel=self._on_struck_off
            )
        except ChannelError as error:
            # In a cluster, the node that has the roll may be down. Uncounted is better than out of reach.
            if not _is_down(error):
                raise
            self._enrol_at = time.monotonic() + ENROL_AGAIN
        else:
            self._enrol_at = float("inf")

    def _count(self) -> int | None:
        channel = self._connection.channel()
        try:
            return int(channel.queue_declare(self._roll, passive=True).consumer_count)
        except NotFound as error:
            return None if _is_down(error) else 0
        finally:
            if channel.is_open:
                channel.close()

    def _publish(self, key: str, data: bytes) -> None:
        message = self._channel.prepare_message(
            data,
            content_type="application/octet-stream",
            content_encoding="binary",
            properties={"delivery_mode": 1},
        )
        self._channel.basic_publish(message, exchange=EXCHANGE, routing_key=key)

    # -- reading ---------------------------------------------------------------------------------------

    def _look(self) -> bool:
        return self._wire.look() is not None

    def _descriptor(self) -> int:
        return int(self._connection.established._transport.sock.fileno())

    def _read(self) -> None:
        try:
            self._connection.established.blocking_read(timeout=A_MOMENT)
        except TimeoutError:
            if self._wire.look() == "gone":
                raise Lost("the broker hung up") from None

    def _keep_alive(self) -> float:
        established, now = self._connection.established, time.monotonic()
        if now >= self._enrol_at:
            with self._within(ANSWER):
                self._enrol()
        interval: float = established.heartbeat
        if not interval:
            return min(now + LONGEST_NAP, self._enrol_at)
        since, frames = self._heard
        if established.bytes_recv != frames:
            self._heard = now, established.bytes_recv
        elif now - since >= interval * SILENT_FOR:
            raise Lost(f"nothing was heard from the broker for {now - since:.0f} s")
        if now - self._wire.beaten >= interval / BEATS:
            self._wire.beat()
        return min(now + interval / BEATS, self._enrol_at)

    @property
    def _wire(self) -> Any:
        wire = self._connection.wire
        established = self._connection.established
        if wire is None or not wire.carries(established):
            # py-amqp would dial anew.
            raise Lost("the connection was closed")
        return wire

    # -- what py-amqp calls ----------------------------------------------------------------------------

    def _on_message(self, message: Any) -> None:
        body = message.body
        self._inbox.append(body.encode() if isinstance(body, str) else body)

    def _on_struck_off(self, tag: str) -> None:
        self._enrol_at = 0.0

    def _on_blocked(self, reason: str) -> None:
        self.blocked = reason or "an alarm"

    def _on_unblocked(self) -> None:
        self.blocked = None


def _ignore(message: Any) -> None:
    """Nobody sends to the roll."""


def _is_down(error: ChannelError) -> bool:
    return isinstance(error, NotFound) and "down or inaccessible" in str(error)
