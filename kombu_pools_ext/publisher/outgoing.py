"""One message on the shared road, from the call to its outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..broker.amqp.deliveries import Delivery
from ..broker.amqp.frames import encode
from .content import Content

__all__ = ["Outgoing"]


class Outgoing(Delivery):
    """A serialized message, and what has become of it. It gets one outcome.

    :param content: its body and properties.
    :param until: when it must have been written, in seconds of ``time.monotonic``.
    :param seconds: how long it may wait for its outcome from then on.
    :param began: when its caller began, in seconds of ``time.monotonic``.
    :param tries: how often it may be sent again after a connection broke; ``None`` is any number.
    :param declare: what has to be declared on its connection before it.
    """

    __slots__ = (
        "_encoded_for",
        "_fate",
        "_frames",
        "began",
        "begin",
        "bytes",
        "content",
        "declare",
        "declared_on",
        "nacks",
        "resent",
        "seconds",
        "settled",
        "tries",
        "unanswered",
        "until",
        "written",
    )

    def __init__(
        self,
        message_id: str,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        *,
        content: Content,
        until: float,
        seconds: float,
        began: float = 0.0,
        tries: int | None = 0,
        declare: tuple[Any, ...] = (),
    ) -> None:
        # The tracker's own count of what may come back is one thread's.
        super().__init__(message_id, exchange, routing_key, mandatory, 0)
        self._encoded_for = (0, 0)
        self._frames = b""
        self.content = content
        #: Those of its body.
        self.bytes = len(content.octets)
        self.until = until
        self.seconds = seconds
        self.began = began
        #: The number of the connection for which all that it declares was declared.
        self.declared_on = 0
        self.tries = tries
        self.declare = declare
        #: Whether a write of it has begun, of any try.
        self.written = False
        #: Whether an earlier try may have reached the broker.
        self.resent = False
        #: Whether a try had no answer because its connection broke, or others were on its channel when that was closed.
        self.unanswered = False
        #: How often the broker has refused it.
        self.nacks = 0
        #: Called before it is written for the first time: whether it is still to be sent. It is, if there is none.
        self.begin: Callable[[], bool] | None = None
        #: Called once, when it is done; set by who waits.
        self.settled: Callable[[Outgoing], object] | None = None
        # The error that is its outcome, or ``None``; empty until it has one.
        self._fate: dict[str, tuple[BaseException | None]] = {}

    @property
    def done(self) -> bool:
        """Whether it has its outcome."""
        return bool(self._fate)

    @property
    def error(self) -> BaseException | None:
        """The error that is its outcome; ``None`` if it has none, or another one."""
        return self._fate["is"][0] if self._fate else None

    def forget_error(self) -> None:
        """Keep nothing of the error, which is raised now."""
        self._fate["is"] = (None,)

    def frames(self, channel: int, frame_max: int) -> bytes:
        """Return its frames for the channel with this number; nothing if the shared connection has none for it.

        :param frame_max: bytes of a frame, as agreed on with the broker.
        :raises ValueError: if its headers have no room in a frame.
        """
        wanted = (channel, frame_max)
        if self._encoded_for != wanted:
            octets, content_type, encoding, priority, delivery_mode, headers, other = self.content
            frames = encode(
                *(channel, frame_max, self.exchange, self.routing_key, self.mandatory, False),
                *(octets, self.message_id, content_type, encoding, priority, delivery_mode),
                *(headers, other),
            )
            self._frames = frames or b""
            self._encoded_for = wanted
        return self._frames

    def begins(self) -> bool:
        """Note that it is about to be written; return whether it is still to be sent."""
        return self.begin is None or self.begin()

    def settle(self, error: BaseException | None = None) -> bool:
        """Give it its outcome, *error* or none; return whether it had none yet."""
        mine = (error,)
        # One step of the interpreter: of two that settle it at once one is the first, and what interrupts comes
        # before it has an outcome, or after it has its whole outcome.
        if self._fate.setdefault("is", mine) is not mine:
            return False
        settled = self.settled
        if settled is not None:
            settled(self)
        return True

    def correct(self, error: BaseException) -> None:
        """Have *error* for its outcome, before anybody has looked at that."""
        self._fate["is"] = (error,)

    def begin_again(self) -> None:
        """Forget what the broker said of an earlier try."""
        self.outcome = None
        self.returned = None
        self.resent = True
