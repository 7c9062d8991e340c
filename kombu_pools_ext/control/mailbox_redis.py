"""A mailbox on Redis: pub/sub alone, which has no keys. What nobody hears is gone, and Redis counts who hears it.

Channels are not kept apart by database, as keys are: so the number is in their names, and a key prefix as well, which
access rules may ask for.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .mailbox import ANSWER, PREFIX, Lost, Mailbox

__all__ = ["RedisMailbox"]

#: Seconds between two pings on a silent subscription, and how long an answer may take: as many.
PING_EVERY = 30.0


class RedisMailbox(Mailbox):
    """See the module."""

    def _prepare(self) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        channel: Any = self._connection.default_channel
        pool = self._pool = channel.pool
        # What is lost is for us to open again: redis-py would go on trying, behind our back.
        pool.connection_kwargs["retry"] = Retry(NoBackoff(), 0)
        pool.connection_kwargs.pop("retry_on_timeout", None)
        database = pool.connection_kwargs.get("db") or 0
        prefix = getattr(channel, "global_keyprefix", "") or ""
        self.place = f"redis {prefix}{database}"
        self._all = f"{prefix}{PREFIX}.{database}.{self._project}"
        # Not the channel's own client, which would put the prefix before some names, and not before others.
        client: Any = redis.Redis(connection_pool=pool)
        self._client, self._subscription = client, client.pubsub()
        self._heard = self._pinged = time.monotonic()
        self._hang_up_idle(channel)

    def join(self) -> None:
        self._subscribe(self._all)

    def await_answers(self) -> None:
        self.address = f"{self._all}.answers.{secrets.token_hex(16)}"
        self._subscribe(self.address)

    def send_to_all(self, data: bytes) -> int | None:
        with self._within(ANSWER):
            subscribed = self._subscribed([self._all])
        # A client that has subscribed to a pattern is counted by PUBLISH, but not by PUBSUB NUMSUB.
        heard = self._publish(self._all, data)
        return heard if subscribed is None else min(heard, subscribed)

    def count_others(self, names: Collection[str]) -> int:
        beginning = self._all.removesuffix(self._project)
        # Characters with a meaning in a pattern are escaped.
        pattern = re.sub(r"([\\*?[\]])", r"\\\1", beginning) + "*"
        with self._within(ANSWER):
            found = self._client.execute_command("PUBSUB CHANNELS", pattern)
            channels = {one.decode(errors="replace") for one in found}
            known = {f"{beginning}{name}" for name in names}
            is_project = re.compile(re.escape(beginning) + "[0-9a-f]{16}").fullmatch
            return self._subscribed([one for one in channels - known if is_project(one)]) or 0

    def _subscribed(self, channels: Sequence[str]) -> int | None:
        """Return how many have subscribed to these channels by name; ``None`` if access rules forbid that."""
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
        deadline = time.monotonic() + ANSWER
        with self._within(ANSWER):
            self._subscription.subscribe(name)
            # Only then is it heard, and counted.
            while (message := self._subscription.get_message(timeout=ANSWER)) is None or (
                message["type"] != "subscribe"
            ):
                if time.monotonic() >= deadline:
                    raise TimeoutError("Redis did not answer")

    def _publish(self, name: str, data: bytes) -> int:
        with self._within(ANSWER):
            count = int(self._client.publish(name, data))
        # On the subscription nothing else can be said; and one connection is what a process has.
        self._pool.disconnect(inuse_connections=False)
        return count

    def _hang_up_idle(self, channel: Any) -> None:
        for name in ("_pool", "_async_pool"):
            pool = channel.__dict__.get(name)
            if pool is not None:
                pool.disconnect(inuse_connections=False)

    # -- reading ---------------------------------------------------------------------------------------

    def _look(self) -> bool:
        return bool(self._subscription.connection.can_read(timeout=0))

    def _descriptor(self) -> int:
        sock = self._subscription.connection._sock
        if sock is None:
            raise Lost("the connection was closed")
        return int(sock.fileno())

    def _read(self) -> None:
        message = self._subscription.get_message(timeout=ANSWER)
        self._heard = time.monotonic()
        if message is not None and message["type"] == "message":
            self._inbox.append(message["data"])

    def _keep_alive(self) -> float:
        now = time.monotonic()
        if self._pinged > self._heard and now - self._pinged >= PING_EVERY:
            raise Lost(f"nothing was heard from Redis for {now - self._heard:.0f} s")
        if now - max(self._heard, self._pinged) >= PING_EVERY:
            with self._within(ANSWER):
                self._subscription.ping()
            self._pinged = now
        return max(self._heard, self._pinged) + PING_EVERY

    def close(self, seconds: float) -> None:
        super().close(seconds)
        subscription = self.__dict__.get("_subscription")
        if subscription is not None:
            subscription.close()
            self._pool.disconnect()


def _sum_of_counts(answer: Any) -> int:
    """Sum the counts in an answer to PUBSUB NUMSUB, whose form depends on the version."""
    if isinstance(answer, Mapping):
        return sum(map(int, answer.values()))
    if answer and isinstance(answer[0], tuple | list):
        return sum(int(count) for _, count in answer)
    return sum(map(int, answer[1::2]))
