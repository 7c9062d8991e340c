"""The session of a connection whose sockets are not known: memory, and all transports but AMQP's and Redis's."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from kombu.exceptions import OperationalError
from vine import promise

from . import tls, virtual_leftovers
from .batch_state import BatchState
from .left import Left
from .redis_answers import is_answer, is_refusal, refusal
from .sender import BatchSender, Sender
from .session import has_its_channel
from .sockets import close_inherited

__all__ = ["PlainSession"]

_UNBOUND = contextlib.nullcontext()


class PlainSession:
    """Asks kombu, which knows no more than whether it is connected.

    :param connection: a pooled connection of kombu's.
    """

    certain = False
    sends_together = False
    bounds_batches = True
    knows_its_sockets = False
    can_be_shared = False
    shared = None
    deadline: float | None = None
    may_have_left = True  # nobody has seen whether it has
    is_torn = False
    has_ended = False

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        #: Whether an answer was for this connection, and not for what was asked: another one may not get it.
        self.is_turned_away = False

    @property
    def seconds_to_tidy(self) -> float:
        """Seconds for one answer: what is given back is written by the client."""
        return self.connection.answer_timeout  # type: ignore[no-any-return]  # a number

    def within(self, deadline: float | None) -> contextlib.AbstractContextManager[None]:
        return _UNBOUND

    def establish(self) -> Any:
        return self.connection.transport.establish_connection()

    def remedy(self, error: Exception) -> str | None:
        return tls.remedy(error, self.connection.hostname, self.connection.ssl, redis=False)

    def settle(
        self,
        on_blocked: Callable[[str], object] | None,
        on_unblocked: Callable[[], object] | None,
    ) -> None:
        self.is_turned_away = False

    def check(self, *, thorough: bool = False) -> bool:
        return self.connection._connection is not None and bool(self.connection.connected)

    def is_hung_up(self) -> bool:
        return False

    def keep_alive_every(self) -> float | None:
        return None

    def keep_alive(self) -> bool:
        return self.check()

    def beat(self) -> None:
        pass

    def ping(self) -> None:
        # There is no message for this: being connected has to do.
        if not self.connection.connected:
            raise OperationalError("the connection is lost")

    def disconnect(self) -> None:
        if self.connection._connection is not None:
            with contextlib.suppress(Exception):
                self.connection.collect()
            self.connection._connection = None

    def close(self, *, broken: bool, seconds: float) -> None:
        item = self.connection
        if item.untidy:
            seconds += virtual_leftovers.longest_poll(item)
        with self.within(time.monotonic() + seconds):
            self.give_back()
            if broken:
                item.collect_below()
            else:
                item._close()

    def announce_close(self) -> None:
        pass

    def abandon(self) -> None:
        close_inherited(self.connection)

    def default_channel(self) -> Any:
        item = self.connection
        if item._default_channel is None:
            # The producers that stay are to have it, too.
            item.untidy = True
        return item.kombus_default_channel()

    def forget_channel(self) -> None:
        self.connection._default_channel = None

    def publish(
        self,
        sender: Sender,
        body: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float,
    ) -> Any:
        try:
            done = sender.publish_as_its_class(body, *args, **kwargs)
        except Exception as error:
            refused = self._refusal(sender, error, kwargs)
            if refused is None:
                raise
            raise refused from error
        return None if type(done) is promise else done

    def _refusal(
        self, sender: Sender, error: Exception, kwargs: dict[str, Any]
    ) -> BaseException | None:
        """What to raise for *error* if Redis has refused the message for good: kombu's own pools have it, too."""
        if is_refusal(error):
            name, one_queue = sender.message_id_of(kwargs), sender.has_one_queue(kwargs)
            return refusal(error, sender.name_of_pool, name, one_queue=one_queue)
        # Another answer is one to this connection: to a retry, another one may not give it.
        self.is_turned_away = self.is_turned_away or is_answer(error)
        return None

    def sending(self, deadline: float) -> contextlib.AbstractContextManager[None]:
        return self.within(deadline)

    def new_batch(self, sender: BatchSender, max_size: int) -> BatchState | None:
        return None

    def has_refused(self, error: BaseException) -> bool:
        return False

    def translated(self, sender: Sender, error: BaseException) -> BaseException:
        if not is_answer(error):
            return error
        self.is_turned_away = self.is_turned_away or not is_refusal(error)
        return refusal(error, sender.name_of_pool, None)

    def has_raised(self, error: BaseException) -> bool:
        return False

    def break_off(self) -> None:
        pass

    def is_sound(self) -> bool:
        item = self.connection
        established = item._connection
        # Nothing is connected, or something that neither the pool nor a repair in place has connected.
        if established is None or established is not item.established:
            return False
        return not self.is_turned_away and is_connected(item, established)

    def end_leftovers(self, left: Left) -> str | None:
        return virtual_leftovers.end(self.connection, self.connection.established, left)

    def channels_in_use(self) -> list[Any]:
        return []

    def give_back(self) -> None:
        if self.connection.untidy:
            virtual_leftovers.close_channels(self.connection)


def is_connected(connection: Any, established: Any) -> bool:
    """Whether *established* knows of no end, and the default channel of *connection* is one of it."""
    # Only py-amqp's connections know when they are gone; asked of their socket's owner, which is one call less.
    transport = getattr(established, "_transport", established)
    if transport is None or not getattr(transport, "connected", True):
        return False
    return has_its_channel(connection, established)
