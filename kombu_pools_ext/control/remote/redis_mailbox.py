"""A mailbox on Redis. It uses only pub/sub, and no keys. Redis counts the subscribers of a channel.

Unlike keys, channels are shared by all databases. So their names contain the number of the database, and the key
prefix, which access rules may require.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .mailbox import ANSWER_TIMEOUT, PREFIX, ConnectionLost, Mailbox

__all__ = ["RedisMailbox"]

#: Seconds without a message after which a ping is sent. Its answer may take as long.
PING_INTERVAL = 30.0


class RedisMailbox(Mailbox):
    """A mailbox on Redis."""

    def _prepare(self) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        channel: Any = self._connection.default_channel
        pool = self._pool = channel.pool
        # A lost connection must raise an error, so redis-py must not retry.
        pool.connection_kwargs["retry"] = Retry(NoBackoff(), 0)
        pool.connection_kwargs.pop("retry_on_timeout", None)
        database = pool.connection_kwargs.get("db") or 0
        prefix = getattr(channel, "global_keyprefix", "") or ""
        self.scope = f"redis {prefix}{database}"
        self._all = f"{prefix}{PREFIX}.{database}.{self._project}"
        # Not the channel's own client, which adds the prefix to some names and not to others.
        client: Any = redis.Redis(connection_pool=pool)
        self._client, self._subscription = client, client.pubsub()
        self._last_read = self._last_ping = time.monotonic()
        self._close_unused(channel)

    def join(self) -> None:
        self._subscribe(self._all)

    def await_answers(self) -> None:
        self.address = f"{self._all}.answers.{secrets.token_hex(16)}"
        self._subscribe(self.address)

    def send_to_all(self, data: bytes) -> int | None:
        with self._within(ANSWER_TIMEOUT):
            subscribed = self._subscribed([self._all])
        # PUBLISH also counts clients that have subscribed to a pattern; PUBSUB NUMSUB does not.
        receivers = self._publish(self._all, data)
        return receivers if subscribed is None else min(receivers, subscribed)

    def count_others(self, names: Collection[str]) -> int:
        beginning = self._all.removesuffix(self._project)
        # Escapes the characters that have a meaning in a pattern.
        pattern = re.sub(r"([\\*?[\]])", r"\\\1", beginning) + "*"
        with self._within(ANSWER_TIMEOUT):
            found = self._client.execute_command("PUBSUB CHANNELS", pattern)
            channels = {one.decode(errors="replace") for one in found}
            known = {f"{beginning}{name}" for name in names}
            is_project = re.compile(re.escape(beginning) + "[0-9a-f]{16}").fullmatch
            return self._subscribed([one for one in channels - known if is_project(one)]) or 0

    def _subscribed(self, channels: Sequence[str]) -> int | None:
        """Return how many clients have subscribed to these channels by name; ``None`` if access rules forbid to ask."""
        from redis.exceptions import ResponseError

        if not channels:
            return 0
        try:
            found = self._client.execute_command("PUBSUB NUMSUB", *channels)
        except ResponseError:
            # The user may lack +pubsub.
            return None
        return _sum_of_counts(found)

    def send(self, address: str, data: bytes) -> None:
        self._publish(address, data)

    def _subscribe(self, name: str) -> None:
        deadline = time.monotonic() + ANSWER_TIMEOUT
        with self._within(ANSWER_TIMEOUT):
            self._subscription.subscribe(name)
            # Once this is confirmed, the subscription receives messages, and Redis counts it.
            while (message := self._subscription.get_message(timeout=ANSWER_TIMEOUT)) is None or (
                message["type"] != "subscribe"
            ):
                if time.monotonic() >= deadline:
                    raise TimeoutError("Redis did not answer")

    def _publish(self, name: str, data: bytes) -> int:
        with self._within(ANSWER_TIMEOUT):
            count = int(self._client.publish(name, data))
        # Publishing needs a second connection, which is closed again, so that each process has only one.
        self._pool.disconnect(inuse_connections=False)
        return count

    def _close_unused(self, channel: Any) -> None:
        for name in ("_pool", "_async_pool"):
            pool = channel.__dict__.get(name)
            if pool is not None:
                pool.disconnect(inuse_connections=False)

    # -- reading ---------------------------------------------------------------------------------------

    def _has_pending(self) -> bool:
        return bool(self._subscription.connection.can_read(timeout=0))

    def _descriptor(self) -> int:
        sock = self._subscription.connection._sock
        if sock is None:
            raise ConnectionLost("the connection was closed")
        return int(sock.fileno())

    def _read(self) -> None:
        message = self._subscription.get_message(timeout=ANSWER_TIMEOUT)
        self._last_read = time.monotonic()
        if message is not None and message["type"] == "message":
            self._received.append(message["data"])

    def _keep_alive(self) -> float:
        now = time.monotonic()
        if self._last_ping > self._last_read and now - self._last_ping >= PING_INTERVAL:
            raise ConnectionLost(f"Redis has sent nothing for {now - self._last_read:.0f} s")
        if now - max(self._last_read, self._last_ping) >= PING_INTERVAL:
            with self._within(ANSWER_TIMEOUT):
                self._subscription.ping()
            self._last_ping = now
        return max(self._last_read, self._last_ping) + PING_INTERVAL

    def close(self, seconds: float) -> None:
        super().close(seconds)
        subscription = self.__dict__.get("_subscription")
        if subscription is not None:
            subscription.close()
            self._pool.disconnect()


def _sum_of_counts(answer: Any) -> int:
    """Return the sum of the counts in an answer to PUBSUB NUMSUB, whose form depends on the version."""
    if isinstance(answer, Mapping):
        return sum(map(int, answer.values()))
    if answer and isinstance(answer[0], tuple | list):
        return sum(int(count) for _, count in answer)
    return sum(map(int, answer[1::2]))
