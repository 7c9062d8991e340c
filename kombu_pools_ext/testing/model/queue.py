"""A classic queue: its messages in their order, its limits, its time-outs and its consumers."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .consumer import Consumer
from .entry import Entry
from .message import Message

__all__ = ["Queue"]

#: AMQP's flags of two properties.
_PRIORITY, _EXPIRATION = 0x0800, 0x0100


class Queue:
    """One queue.

    :param owner: the connection that it belongs to, if it is exclusive.
    :param dead_letter: is called with each message that the queue gives up, and the reason.
    :param provisional: whether it is there because a message was published to it, and nobody has declared it.
    """

    def __init__(
        self,
        name: str,
        *,
        durable: bool = False,
        auto_delete: bool = False,
        owner: object | None = None,
        arguments: Mapping[str, Any] | None = None,
        dead_letter: Callable[[Queue, Message, str], None],
        provisional: bool = False,
    ) -> None:
        self.name = name
        self.durable = durable
        self.auto_delete = auto_delete
        self.owner = owner
        self.arguments = dict(arguments or {})
        self.provisional = provisional
        self.consumers: list[Consumer] = []
        self.had_consumers = False
        #: When it was used last, in seconds of the broker's clock.
        self.used = 0.0
        self._dead_letter = dead_letter
        self._numbers = 0
        # By priority, the highest first, what waits; its place is the key.
        self._ready: dict[int, list[Entry]] = {}

    # -- what it holds ------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(map(len, self._ready.values()))

    def __iter__(self) -> Iterator[Message]:
        for entry in self._in_order():
            yield entry.message

    def _in_order(self) -> Iterator[Entry]:
        for priority in sorted(self._ready, reverse=True):
            yield from self._ready[priority]

    @property
    def size(self) -> int:
        """The bytes of the bodies that wait."""
        return sum(len(entry.message.body) for entry in self._in_order())

    @property
    def _head(self) -> Entry | None:
        return next(self._in_order(), None)

    def _pop(self) -> Entry | None:
        for priority in sorted(self._ready, reverse=True):
            waiting = self._ready[priority]
            if waiting:
                return waiting.pop(0)
        return None

    # -- messages come ------------------------------------------------------------------------------------

    def publish(self, message: Message, now: float) -> bool:
        """Take *message*; return whether it did, for a full queue may refuse it."""
        overflow = self.arguments.get("x-overflow", "drop-head")
        if overflow != "drop-head" and self._is_over(len(self) + 1, len(message.body)):
            if overflow == "reject-publish-dlx":
                self._dead_letter(self, message, "maxlen")
            return False
        entry = Entry(
            self.name,
            message,
            self._numbers,
            self._priority_of(message),
            self._expiry(message, now),
        )
        self._numbers += 1
        self._ready.setdefault(entry.priority, []).append(entry)
        self.deliver(now)
        self.expire(now)
        while self._is_over(len(self), 0):
            dropped = self._pop()
            if dropped is None:
                break
            self._dead_letter(self, dropped.message, "maxlen")
        return True

    def _is_over(self, length: int, more: int) -> bool:
        most, most_bytes = (
            self.arguments.get("x-max-length"),
            self.arguments.get("x-max-length-bytes"),
        )
        return (most is not None and length > most) or (
            most_bytes is not None and self.size + more > most_bytes
        )

    def _priority_of(self, message: Message) -> int:
        most = self.arguments.get("x-max-priority", 0)
        if not most or not message.has(_PRIORITY):
            return 0
        return min(int(message.properties["priority"]), int(most))

    def _expiry(self, message: Message, now: float) -> float | None:
        times = [self.arguments["x-message-ttl"]] if "x-message-ttl" in self.arguments else []
        if message.has(_EXPIRATION):
            times.append(int(message.properties["expiration"]))
        return now + min(times) / 1000 if times else None

    # -- messages go --------------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """Give up the messages at the head whose time is over."""
        while (head := self._head) is not None and head.expires is not None and head.expires <= now:
            self._pop()
            self._dead_letter(self, head.message, "expired")

    @property
    def next_expiry(self) -> float | None:
        """When the message at the head expires; ``None`` is never."""
        head = self._head
        return None if head is None else head.expires

    @property
    def expires_unused(self) -> float | None:
        """When the queue itself expires, unless it is used; ``None`` is never."""
        after = self.arguments.get("x-expires")
        return None if after is None or self.consumers else self.used + after / 1000

    def get(self, now: float) -> Entry | None:
        """Take the message at the head; ``None`` if there is none."""
        self.used = now
        self.expire(now)
        return self._pop()

    def deliver(self, now: float) -> None:
        """Give the consumers, in turn, what they may have."""
        while self.consumers and self._head is not None:
            turn = next((one for one in self.consumers if one.can_take()), None)
            if turn is None:
                return
            entry = self._pop()
            if entry is None:
                return
            if entry.expires is not None and entry.expires < now:
                self._dead_letter(self, entry.message, "expired")
                continue
            self.consumers.remove(turn)
            self.consumers.append(turn)
            turn.take(entry)

    def requeue(self, entry: Entry) -> None:
        """Put *entry*, which was taken, back where it was."""
        entry.redelivered = True
        insort(self._ready.setdefault(entry.priority, []), entry, key=lambda one: one.number)

    def reject(self, entry: Entry) -> None:
        """Give up *entry*, which a consumer has rejected."""
        self._dead_letter(self, entry.message, "rejected")

    def purge(self) -> int:
        """Forget what waits; return how many messages that were."""
        count = len(self)
        self._ready.clear()
        return count
