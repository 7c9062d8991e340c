"""What a connection can be asked, whatever its transport.

There is one implementation for each kind of transport: AMQP's, Redis's, and one for all others.
``docs/explanation/sessions.md`` tells who owns what, and what can happen when.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from .batch_state import BatchState
from .left import Left
from .sender import BatchSender, Sender

__all__ = ["Session", "has_its_channel"]


class Session(Protocol):
    """One connection, as the pool and its leases use it. One thread at a time, but for :meth:`beat`."""

    #: The connection of kombu's.
    connection: Any

    # -- its time -----------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """When what is being done must have ended, in seconds of ``time.monotonic``; ``None`` is never."""
        ...

    def within(self, deadline: float | None) -> AbstractContextManager[None]:
        """Within, every read and write ends by *deadline*, with a :class:`TimeoutError`, where that can be had.

        :param deadline: in seconds of ``time.monotonic``; ``None`` sets none. Of nested ones the earlier holds.
        """
        ...

    # -- its life -----------------------------------------------------------------------------------------

    def establish(self) -> Any:
        """Connect, and return the transport's connection.

        :raises Exception: the transport's; no descriptor is left open.
        """
        ...

    def remedy(self, error: Exception) -> str | None:
        """What to do about *error*, which :meth:`establish` has raised, where it is one of TLS's."""
        ...

    def settle(
        self,
        on_blocked: Callable[[str], object] | None,
        on_unblocked: Callable[[], object] | None,
    ) -> None:
        """Make the connection, which has just been established, the pool's.

        :param on_blocked: is told when the broker takes no messages for a while, and why, where it can tell.
        :param on_unblocked: is told when it takes them again.
        """
        ...

    def check(self, *, thorough: bool = False) -> bool:
        """Whether the connection, which is idle, may be lent. It never dials, and waits for its own bound at most.

        :param thorough: whether the broker has to answer: a balancer that lost its table, or a firewall, leaves sockets
            behind that look alive until something is sent.
        """
        ...

    def is_hung_up(self) -> bool:
        """Whether a look shows that the peer has hung up; ``False`` where it cannot be seen without reading."""
        ...

    def keep_alive_every(self) -> float | None:
        """Seconds between two calls of :meth:`keep_alive` or :meth:`beat`; ``None`` if there is no need."""
        ...

    def keep_alive(self) -> bool:
        """Do what keeps the connection, which is idle, alive; return whether the peer is."""
        ...

    def beat(self) -> None:
        """Send a heartbeat if it is needed, while another thread may be using the connection. It reads nothing."""
        ...

    def ping(self) -> None:
        """Ask the broker something, and wait for its answer, where there is a message for that.

        :raises Exception: the transport's.
        """
        ...

    def disconnect(self) -> None:
        """Close what was connected, without a goodbye, and forget what was known of it: another one takes its place."""
        ...

    def close(self, *, broken: bool, seconds: float) -> None:
        """Say goodbye within *seconds*, and close the connection for good; not a word is said if it is *broken*."""
        ...

    def announce_close(self) -> None:
        """Send the goodbye, whose answer :meth:`close` reads: the broker then knows it even if nobody waits."""
        ...

    def abandon(self) -> None:
        """In a forked child: close the descriptors, without a word and without a shutdown."""
        ...

    # -- its channel --------------------------------------------------------------------------------------

    def default_channel(self) -> Any:
        """Return the default channel, which is opened if there is none."""
        ...

    def forget_channel(self) -> None:
        """Let go of the default channel, and of what is counted on it."""
        ...

    # -- publishing ---------------------------------------------------------------------------------------

    #: Whether it is known here that a message which could not be written to its end is not there.
    certain: bool
    #: Whether a batch of kombu's sends its messages together.
    sends_together: bool
    #: Whether a batch of kombu's is kept within a time here.
    bounds_batches: bool

    def publish(
        self,
        sender: Sender,
        body: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float,
    ) -> Any:
        """Publish once, by *deadline*; the arguments are those of :meth:`kombu.Producer.publish`.

        :raises PublishError: what the broker said of the message, if it did not take it.
        :raises Exception: the transport's.
        """
        ...

    def sending(self, deadline: float) -> AbstractContextManager[None]:
        """Within, what a batch of kombu's sends, and the answers to it, have until *deadline*."""
        ...

    def new_batch(self, sender: BatchSender, max_size: int) -> BatchState | None:
        """Return what takes the messages of a batch of *sender*, where that does more than to publish each by itself.

        :param max_size: messages that may be without their confirm, or are sent together.
        """
        ...

    @property
    def can_be_shared(self) -> bool:
        """Whether several threads can publish on it at the same time."""
        ...

    #: What they publish on then.
    shared: Any

    @property
    def may_have_left(self) -> bool:
        """Whether any byte of the last publish was written, or may have been."""
        ...

    @property
    def is_torn(self) -> bool:
        """Whether a write was cut short, so that half a message may be out."""
        ...

    def has_refused(self, error: BaseException) -> bool:
        """Whether the broker has ended channel or connection for the message that *error* is about."""
        ...

    def translated(self, sender: Sender, error: BaseException) -> BaseException:
        """What to raise for *error*, which a batch of kombu's has ended with."""
        ...

    # -- the end of a lease -------------------------------------------------------------------------------

    #: Whether the errors of its sockets can be told from those of others.
    knows_its_sockets: bool

    def has_raised(self, error: BaseException) -> bool:
        """Whether *error*, or what caused it, was raised by one of its sockets."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether one of its sockets is known to have ended, whatever was raised for it."""
        ...

    def break_off(self) -> None:
        """Note that a read was broken off: what is to come begins in the middle of something."""
        ...

    def is_sound(self) -> bool:
        """Whether a lease has left it as it should: the same connection, its channel, and nothing pending."""
        ...

    @property
    def seconds_to_tidy(self) -> float:
        """Seconds for :meth:`end_leftovers`, after which the connection is given up."""
        ...

    def end_leftovers(self, left: Left) -> str | None:
        """End what a lease left behind, and count it in *left*.

        :returns: why the connection must be closed now; ``None`` if it need not be.
        :raises Exception: the transport's, for what it met: the connection is of no use then.
        """
        ...

    def channels_in_use(self) -> list[Any]:
        """The channels, besides those of producers, that must be the default one at the end of a lease."""
        ...

    def give_back(self) -> None:
        """Give back what was taken, where the transport's goodbye does not; to be called before that."""
        ...


def has_its_channel(connection: Any, established: Any) -> bool:
    """Whether the default channel of *connection*, if there is one, is a channel of *established*."""
    channel = connection._default_channel
    if channel is None:
        return True
    try:
        # Closed by the borrower, or put there by it: nobody opens another one in its place.
        return bool(channel.connection is established)
    except AttributeError:
        return True
