"""The session of an AMQP connection: its socket, its default channel and what is counted there."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from amqp import exceptions as amqp_errors
from amqp import spec
from vine import promise

from .. import tls
from ..arguments import CANNOT_BE_ENCODED, explain, named
from ..batch_state import BatchState
from ..left import Left
from ..own_errors import is_marked, raised_by_library
from ..sender import BatchSender, Sender
from ..session import has_its_channel
from ..sockets import Within, close_inherited
from . import leftovers
from .compat import fits
from .gathered_batch import GatheredBatch
from .opening import open_connection
from .pipelined_batch import PipelinedBatch
from .publisher import KOMBUS, ChannelPublisher, allows_fast_path, has_fast_path
from .transport import Transport

__all__ = ["AmqpSession"]

logger = logging.getLogger("kombu_pools_ext")

#: Frames read at most in one check: the heartbeats of three days' lease. A peer that says more unasked is not sound.
#: What they weigh in all is bounded as well: :data:`.inbound.MOST_UNASKED`.
MOST_FRAMES = 10_000
#: Seconds that one check takes at most. What has come is read in microseconds, or a millisecond for each 100 frames;
#: only py-amqp's reopening of a channel that the broker closed waits for an answer.
LONGEST_CHECK = 0.25
#: Heartbeat intervals without a frame after which a peer is dead. RabbitMQ sends two in each. A look may be late by a
#: third of one, and so may the next: thus a peer that falls silent is found out within two.
SILENT_FOR = 4 / 3
#: Looks in each heartbeat interval. Each sends a heartbeat, so that the broker does not take us for dead.
LOOKS = 3
#: Heartbeat intervals between two heartbeats of ours, at least: looks come more often while a broker is blocked.
BEAT_AFTER = 1 / 4
#: Seconds for writing the goodbye alone: its 30 bytes go into the socket's buffer, unless that is full.
ANNOUNCE_TIMEOUT = 0.01


class AmqpSession:
    """The session of one AMQP connection.

    From :meth:`settle` on, when the pool has opened the connection, it has the socket to itself, as ``transport``. If
    the borrower connects anew, the session stays, and has another transport.

    :param connection: a pooled connection of kombu's.
    """

    __slots__ = (
        "_announced",
        "confirms",
        "connection",
        "deadline",
        "first_channel",
        "publisher",
        "shared",
        "spoken",
        "transport",
    )

    certain = True
    sends_together = False
    bounds_batches = True
    knows_its_sockets = True
    #: Not needed here: py-amqp raises an error of its own when a socket has ended.
    has_ended = False
    #: Seconds for ending what a lease left behind; a peer that takes longer is told nothing more.
    seconds_to_tidy = 1.0

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        #: When what is being done must have ended, in seconds of ``time.monotonic``; ``None`` is never. It is kept
        #: here and nowhere else, and outlasts the transport.
        self.deadline: float | None = None
        #: Set to ``False`` before a publish; ``True`` once something was, or may have been, written.
        self.spoken = False
        #: What is below the connection; ``None`` until the pool has opened it.
        self.transport: Transport | None = None
        #: The channel that was opened together with the connection, until it is used.
        self.first_channel: Any = None
        #: Who counts what is published on the default channel, where that is in confirm mode.
        self.confirms: ChannelPublisher | None = None
        #: Who publishes by the fast path, on the channel that was published on last: the same, if that is counted.
        self.publisher: ChannelPublisher | None = None
        #: What all threads publish on, where they share the connection.
        self.shared: Any = None
        self._announced = False

    def within(self, deadline: float | None) -> contextlib.AbstractContextManager[None]:
        return Within(self, deadline)

    # -- its life -----------------------------------------------------------------------------------------

    def establish(self) -> Any:
        established, self.first_channel = open_connection(self.connection)
        return established

    def remedy(self, error: Exception) -> str | None:
        return tls.remedy(error, self.connection.hostname, self.connection.ssl, redis=False)

    def settle(
        self,
        on_blocked: Callable[[str], object] | None,
        on_unblocked: Callable[[], object] | None,
    ) -> None:
        established = self.connection.established
        transport: Transport = established._transport
        transport.session = self
        self.transport = transport
        self.shared = None
        self.spoken = False
        # In the place of those that its options may name: nobody else's code runs in a thread of the pool.
        established.on_blocked = established.on_unblocked = None
        if on_blocked is not None:
            established.when_blocked = on_blocked
        if on_unblocked is not None:
            established.when_unblocked = on_unblocked

    def check(self, *, thorough: bool = False) -> bool:
        transport = self.transport
        established = self.connection._connection
        if transport is None or established is None or not transport.belongs_to(established):
            return False
        state = transport.look()
        if state is None and not thorough:
            return True
        # Whatever was left behind, nobody else's code runs here.
        established.quiet = established.idle = True
        try:
            if state is not None and not self._drain(transport, established, state):
                return False
            return not thorough or self._answers()
        finally:
            established.quiet = established.idle = False

    def _answers(self) -> bool:
        """Whether the broker answers within :data:`LONGEST_CHECK`; asks for what the channel has anyway."""
        with self.within(time.monotonic() + LONGEST_CHECK):
            try:
                # A channel's default: no bound on what is delivered.
                self.default_channel().basic_qos(0, 0, False)
            except Exception as error:
                if not raised_by_library(error):
                    raise
                logger.info(
                    "pool %r: an idle connection does not answer: %s", self._pool_name, error
                )
                return False
        return True

    @property
    def _pool_name(self) -> str:
        return self.connection.pool_name  # type: ignore[no-any-return]  # a str

    def _drain(self, transport: Transport, established: Any, state: str | None) -> bool:
        """Read what came unasked, and say whether the connection has survived it."""
        deadline = time.monotonic() + LONGEST_CHECK
        with self.within(deadline):
            for _ in range(MOST_FRAMES):
                frames = established.bytes_recv
                try:
                    # Even when the peer has hung up, what it said before tells why.
                    established.blocking_read(timeout=0)
                except TimeoutError as error:
                    if not raised_by_library(error):
                        raise
                    # A hang-up with nothing left to read is the end; so is a frame whose answer did not come, and a
                    # peer without end. Else there is half a frame to read, or what only TLS is interested in.
                    return (
                        state == "readable"
                        and established.bytes_recv == frames
                        and time.monotonic() < deadline
                    )
                except Exception as error:
                    self._tell_end(error)
                    return False
                if not transport.belongs_to(established):
                    # Looked at before anything else, for py-amqp dials when a collected connection is asked to read.
                    return False
                state = transport.look()
                if state is None:
                    return True
        return False

    def _tell_end(self, error: Exception) -> None:
        """Log what an idle connection ended with; raise it if it has nothing to do with the connection."""
        pool = self._pool_name
        if isinstance(error, amqp_errors.ChannelError):
            logger.warning(
                "pool %r: an earlier lease's channel was closed by the broker: %s; its connection is "
                "not lent again. Publish with confirms to have such an error where it arises",
                pool,
                error,
            )
        elif isinstance(error, amqp_errors.UnexpectedFrame):
            logger.info("pool %r: an idle connection is given up: %s", pool, error)
        elif isinstance(error, amqp_errors.ConnectionError):
            logger.info("pool %r: the broker closed an idle connection: %s", pool, error)
        elif raised_by_library(error):
            logger.debug("pool %r: an idle connection is dead: %s", pool, error)
        else:
            raise error

    @property
    def is_connected(self) -> bool:
        """Whether the connection is still the one that was opened, and has not been found gone."""
        return self.transport is not None and self.transport.belongs_to(self.connection.established)

    def is_hung_up(self) -> bool:
        return self.transport is not None and self.transport.look() == "gone"

    def keep_alive_every(self) -> float | None:
        # A third of the heartbeat that was agreed on, if any.
        interval = getattr(self.connection.established, "heartbeat", 0)
        return interval / LOOKS if interval else None

    def keep_alive(self) -> bool:
        transport = self.transport
        if transport is None or not self.check():
            return False
        established = self.connection._connection
        interval = getattr(established, "heartbeat", 0)
        if not interval:
            return True
        now, frames = time.monotonic(), established.bytes_recv
        since, known = transport.heard
        if frames != known:
            transport.heard = now, frames
        elif now - since >= interval * SILENT_FOR:
            logger.warning(
                "pool %r: nothing was heard from the broker for %.1f s, with a HEARTBEAT of %g s; the connection is "
                "closed",
                self._pool_name,
                now - since,
                interval,
            )
            return False
        if now - transport.beaten >= interval * BEAT_AFTER:
            transport.beat()
        return True

    def beat(self) -> None:
        if self.transport is not None and self.keep_alive_every() is not None:
            self.transport.beat()

    def ping(self) -> None:
        self.connection.channel().close()

    def disconnect(self) -> None:
        self.first_channel = None
        if self.transport is not None:
            self.transport.forget()
        item = self.connection
        old, item._connection = item.established, None
        if old is not None:
            old.quiet = True
            # Now: the descriptor must not wait for the garbage collector, nor the broker see two connections.
            with contextlib.suppress(Exception):
                old.collect()

    def close(self, *, broken: bool, seconds: float) -> None:
        item = self.connection
        established: Any = item._connection
        # The connection's goodbye covers its channels: no round trip for each.
        item._default_channel = None
        if established is not None:
            # Nobody is called any more with what still comes.
            established.quiet = True
        broken = broken or self.is_torn
        with self.within(time.monotonic() + seconds):
            if self._announced:
                if not broken and established is not None:
                    # The answer alone: a second goodbye might find the broker gone, which would log that we were.
                    with contextlib.suppress(Exception):
                        established.wait(spec.Connection.CloseOk)
                broken = True
            if broken:
                item.collect_below()
            else:
                item._close()
                if established is not None:
                    # What came in the answer's place, such as the end of a consumer, has kept it open.
                    established.collect()

    def announce_close(self) -> None:
        self._announced = True
        established = self.connection._connection
        established._transport.sock.settimeout(ANNOUNCE_TIMEOUT)
        established.send_method(spec.Connection.Close, "BsBB", (0, "the process ends", 0, 0))

    def abandon(self) -> None:
        close_inherited(self.connection)

    # -- its channel --------------------------------------------------------------------------------------

    def default_channel(self) -> Any:
        """Return the default channel, whose publishes wait for their confirms where the connection asks for that.

        :raises RecoverableConnectionError: of py-amqp's, if the connection is closed. It is not opened again.
        """
        item, confirms = self.connection, self.confirms
        channel = item._default_channel
        if self.transport is None:
            return item.kombus_default_channel()
        if confirms is not None and confirms.channel is channel:
            return channel
        established = item.established
        wanted = established.confirm_publish
        selected = False
        # Else it stays the pool's: a borrower of the connection has opened another default channel before.
        if channel is None and self.first_channel is not None:
            channel, self.first_channel = self.first_channel, None
            item._default_channel = channel
            item.untidy = True
            selected = wanted
        if channel is None or (wanted and channel._confirm_selected):
            # The second: somebody had it before as a plain channel, and nobody counted.
            channel = item._default_channel = item.transport.create_channel(established)
        if wanted:
            self.confirms = ChannelPublisher(self, channel, counts=True, selected=selected)
        return channel

    def forget_channel(self) -> None:
        if self.confirms is not None:
            self.confirms.interrupt()
        self.connection._default_channel = self.confirms = self.publisher = None

    # -- publishing ---------------------------------------------------------------------------------------

    def publish(
        self,
        sender: Sender,
        body: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float,
    ) -> Any:
        # Within the deadline, written out: a context costs as much as all the encoding.
        before = self.deadline
        try:
            if before is None or deadline < before:
                self.deadline = deadline
            self.spoken = False
            done = KOMBUS
            if sender.publishes_as_kombu and not args:
                channel = sender.__dict__.get("_channel")
                publisher = self.publisher
                if publisher is None or publisher.channel is not channel:
                    publisher = self.publisher = self._publisher_on(channel)
                if publisher is not None:
                    done = publisher.publish_fast(sender, body, **kwargs)
            if done is KOMBUS:
                done = _by_its_class(sender, body, args, kwargs)
        except CANNOT_BE_ENCODED as error:
            _explain(sender, error, body, args, kwargs)
            raise
        finally:
            self.deadline = before
        return done

    def _publisher_on(self, channel: Any) -> ChannelPublisher | None:
        """The fast path on *channel*; ``None`` if kombu has to publish there."""
        established, publisher = self.connection.established, self.confirms
        if not has_fast_path(established, channel):
            return None
        if publisher is None or publisher.channel is not channel:
            if established.confirm_publish:
                # Nobody counts, and py-amqp's own confirms are waited for.
                return None
            publisher = ChannelPublisher(self, channel, counts=False)
        publisher.take_fast_path()
        return publisher

    def sending(self, deadline: float) -> contextlib.AbstractContextManager[None]:
        return self.within(deadline)

    def new_batch(self, sender: BatchSender, max_size: int) -> BatchState | None:
        if self.connection.established.confirm_publish:
            return PipelinedBatch(sender, max_size)
        return GatheredBatch(sender, max_size) if sender.publishes_as_kombu and fits() else None

    @property
    def can_be_shared(self) -> bool:
        return self.transport is not None and allows_fast_path(self.connection.established)

    @property
    def may_have_left(self) -> bool:
        """Whether any byte of the last publish was written, or may have been."""
        return self.spoken

    @property
    def is_torn(self) -> bool:
        """Whether a write was cut short, so that half a frame may be out."""
        return self.transport is not None and self.transport.torn

    def has_refused(self, error: BaseException) -> bool:
        """Whether the broker has ended channel or connection for the message that *error* is about.

        Without confirms it may have done that for one before.
        """
        return (
            isinstance(error, amqp_errors.AMQPError)
            and getattr(error, "method_sig", None) == spec.Basic.Publish
            and bool(self.connection.established.confirm_publish)
        )

    def translated(self, sender: Sender, error: BaseException) -> BaseException:
        return error

    # -- the end of a lease -------------------------------------------------------------------------------

    def has_raised(self, error: BaseException) -> bool:
        return is_marked(error, self.transport)

    def break_off(self) -> None:
        if self.transport is not None:
            self.transport.interrupted = True

    def is_sound(self) -> bool:
        item, transport = self.connection, self.transport
        established = item._connection
        # Nothing is connected, or something that neither the pool nor a repair in place has connected.
        if established is None or established is not item.established:
            return False
        current = established._transport
        # Interrupted: by an exception that tells nothing of the connection, as Celery's soft time limit is.
        if transport is None or transport.interrupted or current is None or not current.connected:
            return False
        confirms = self.confirms
        # A late confirm is not for the next borrower.
        if confirms is not None and (confirms.spoiled or confirms.pending):
            return False
        return has_its_channel(item, established)

    def end_leftovers(self, left: Left) -> str | None:
        return leftovers.end(self, left)

    def channels_in_use(self) -> list[Any]:
        return [] if self.confirms is None else [self.confirms.channel]

    def give_back(self) -> None:
        pass


def _by_its_class(sender: Sender, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    done = sender.publish_as_its_class(body, *args, **kwargs)
    return None if type(done) is promise else done


def _explain(
    sender: Sender, error: Exception, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raise what says which argument of a publish cannot be encoded, if that is known."""
    given = dict(kwargs)
    named(args, given)
    given["serializer"] = given.get("serializer") or sender.serializer
    explain(error, body, given)
