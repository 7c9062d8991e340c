"""A mailbox on RabbitMQ: exclusive queues, bound to an exchange that always exists.

All queues of a project are bound to ``amq.direct`` with one routing key, so each gets every message, as from a fanout
exchange, but no exchange can be left at the broker. A process that has joined also consumes from the *roll*, one queue
that all processes share and to which nothing is sent, because RabbitMQ counts its consumers.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from amqp.exceptions import ChannelError, NotFound

from .mailbox import ANSWER_TIMEOUT, PREFIX, ConnectionLost, Mailbox
from .signing import LARGEST, VALID_FOR

__all__ = ["RabbitMailbox"]

EXCHANGE = "amq.direct"
#: Limits on what a queue keeps for a process that does not read: commands until they expire, and only a few.
_QUEUE_LIMITS = {
    "x-message-ttl": int(VALID_FOR * 1000),
    "x-max-length": 1000,
    "x-max-length-bytes": 2 * LARGEST,
}
#: RabbitMQ deletes the roll with its last consumer, or after a minute if the first process died before it consumed.
#: It is durable, because RabbitMQ deprecates queues that are neither durable nor exclusive.
_ROLL_OPTIONS = {"durable": True, "auto_delete": True, "arguments": {"x-expires": 60_000}}
#: How many heartbeats are sent in an interval, and after how many silent intervals the connection counts as lost.
BEATS_PER_INTERVAL, SILENT_INTERVALS = 3, 2
#: Seconds between two checks of a connection without heartbeats.
LONGEST_WAIT = 60.0
#: Seconds between two attempts to consume from a roll whose node is down.
ENROL_RETRY = 5.0
#: Seconds to wait for the rest of a frame.
REST_TIMEOUT = 0.2


class RabbitMailbox(Mailbox):
    """A mailbox on RabbitMQ."""

    def _prepare(self) -> None:
        vhost = self._connection.virtual_host or "/"
        self.scope = f"amqp {vhost}"
        self._key = f"{PREFIX}.{self._project}"
        self._roll = f"{self._key}.roll"
        established = self._connection.established
        established.on_blocked = self._on_blocked
        established.on_unblocked = self._on_unblocked
        self._heard = time.monotonic(), established.bytes_recv
        self._channel: Any = self._connection.channel()
        #: When to try to consume from the roll again, in seconds of ``time.monotonic``; infinite while it is consumed.
        self._enrol_at = float("inf")

    def join(self) -> None:
        with self._within(ANSWER_TIMEOUT):
            name = f"{self._key}.{secrets.token_hex(8)}"
            self._listen_on(name, self._key, _QUEUE_LIMITS)
            # Last, so that only a process that can be reached is counted.
            self._enrol()

    def await_answers(self) -> None:
        name = f"{self._key}.answers.{secrets.token_hex(16)}"
        with self._within(ANSWER_TIMEOUT):
            self._listen_on(name, name, {})
        self.address = name

    def send_to_all(self, data: bytes) -> int | None:
        with self._within(ANSWER_TIMEOUT):
            count = self._count()
            self._publish(self._key, data)
        return count

    def send(self, address: str, data: bytes) -> None:
        with self._within(ANSWER_TIMEOUT):
            self._publish(address, data)

    def _listen_on(self, name: str, key: str, limits: dict[str, int]) -> None:
        channel = self._channel
        channel.queue_declare(name, exclusive=True, auto_delete=True, arguments=limits)
        channel.queue_bind(name, EXCHANGE, key)
        channel.basic_consume(name, no_ack=True, callback=self._on_message)

    def _enrol(self) -> None:
        channel = self._connection.channel()
        try:
            channel.queue_declare(self._roll, **_ROLL_OPTIONS)
            channel.basic_consume(
                self._roll, no_ack=True, callback=_ignore, on_cancel=self._on_consumer_cancelled
            )
        except ChannelError as error:
            # In a cluster, the node with the roll may be down. The process can still be reached, but is not counted.
            if not _is_down(error):
                raise
            self._enrol_at = time.monotonic() + ENROL_RETRY
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

    def _has_pending(self) -> bool:
        return self._live_transport.look() is not None

    def _descriptor(self) -> int:
        return int(self._connection.established._transport.sock.fileno())

    def _read(self) -> None:
        try:
            self._connection.established.blocking_read(timeout=REST_TIMEOUT)
        except TimeoutError:
            if self._live_transport.look() == "gone":
                raise ConnectionLost("the broker closed the connection") from None

    def _keep_alive(self) -> float:
        established, now = self._connection.established, time.monotonic()
        if now >= self._enrol_at:
            with self._within(ANSWER_TIMEOUT):
                self._enrol()
        interval: float = established.heartbeat
        if not interval:
            return min(now + LONGEST_WAIT, self._enrol_at)
        since, frames = self._heard
        if established.bytes_recv != frames:
            self._heard = now, established.bytes_recv
        elif now - since >= interval * SILENT_INTERVALS:
            raise ConnectionLost(f"the broker has sent nothing for {now - since:.0f} s")
        if now - self._live_transport.beaten >= interval / BEATS_PER_INTERVAL:
            self._live_transport.beat()
        return min(now + interval / BEATS_PER_INTERVAL, self._enrol_at)

    @property
    def _live_transport(self) -> Any:
        session: Any = self._connection.pooled_session
        if not session.is_connected:
            # py-amqp would connect again.
            raise ConnectionLost("the connection was closed")
        return session.transport

    # -- what py-amqp calls ----------------------------------------------------------------------------

    def _on_message(self, message: Any) -> None:
        body = message.body
        self._received.append(body.encode() if isinstance(body, str) else body)

    def _on_consumer_cancelled(self, tag: str) -> None:
        self._enrol_at = 0.0

    def _on_blocked(self, reason: str) -> None:
        self.blocked = reason or "an alarm"

    def _on_unblocked(self) -> None:
        self.blocked = None


def _ignore(message: Any) -> None:
    """Do nothing, because nothing is sent to the roll."""


def _is_down(error: ChannelError) -> bool:
    return isinstance(error, NotFound) and "down or inaccessible" in str(error)
