"""The session of a connection to Redis: its sockets, which kombu opens and closes as it goes, are bounded."""

from __future__ import annotations

import contextlib
from typing import Any

from . import redis_sockets, tls
from .addresses import CONNECT_TIMEOUT
from .own_errors import is_marked
from .plain import PlainSession
from .redis_sockets import Bounds
from .sender import Sender
from .sockets import close_inherited, forget_socket

__all__ = ["RedisSession"]


class RedisSession(PlainSession):
    """Knows what its sockets have met.

    :param connection: a pooled connection of kombu's.
    """

    sends_together = True
    knows_its_sockets = True
    can_be_shared = False
    shared = None

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        #: What all sockets of the connection keep to, those that are opened later included.
        self.bounds = Bounds()

    @property
    def deadline(self) -> float | None:  # type: ignore[override]  # never set there
        """When what is being done must have ended."""
        return self.bounds.deadline

    @property
    def may_have_left(self) -> bool:  # type: ignore[override]  # not known there
        """Whether any byte of the last publish was written, or may have been."""
        return self.bounds.spoken

    @property
    def has_ended(self) -> bool:  # type: ignore[override]  # not known there
        """Whether the server has hung up, or a socket has failed: redis-py has another word for the first."""
        return self.bounds.ended

    def within(self, deadline: float | None) -> contextlib.AbstractContextManager[None]:
        return self.bounds.within(deadline)

    def establish(self) -> Any:
        item = self.connection
        seconds = item.connect_timeout or CONNECT_TIMEOUT
        # kombu's transport has an option of its own, and never looks at the connection's.
        own = (item.transport_options or {}).get("socket_connect_timeout")
        seconds = max(seconds, own) if isinstance(own, int | float) else seconds
        with redis_sockets.connecting(item, min(seconds, item.at_most or seconds)):
            return super().establish()

    def remedy(self, error: Exception) -> str | None:
        return tls.remedy(error, self.connection.hostname, self.connection.ssl, redis=True)

    def check(self, *, thorough: bool = False) -> bool:
        # A Redis that was demoted answers like any other until something is written. To connect anew takes no longer.
        return super().check() and not thorough and redis_sockets.alive(self.connection)

    def ping(self) -> None:
        redis_sockets.ping(self.connection.default_channel.client)

    def disconnect(self) -> None:
        super().disconnect()
        self.bounds.begin_anew()

    def abandon(self) -> None:
        close_inherited(self.connection)
        transport = self.connection.__dict__.get("_transport")
        for sock in redis_sockets.take_sockets(transport):
            forget_socket(sock)

    def publish(
        self,
        sender: Sender,
        body: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float,
    ) -> Any:
        alone = kwargs.get("confirm_timeout") is not None
        with self.bounds.publishing(deadline, alone=alone):
            return super().publish(sender, body, args, kwargs, deadline)

    def sending(self, deadline: float) -> contextlib.AbstractContextManager[None]:
        return self.bounds.publishing(deadline)

    def has_raised(self, error: BaseException) -> bool:
        return is_marked(error, self.bounds)

    def break_off(self) -> None:
        self.bounds.interrupted = True

    def is_sound(self) -> bool:
        return not self.bounds.interrupted and super().is_sound()
