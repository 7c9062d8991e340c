"""One lease of a connection, which all publish on as long as there is something to publish."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from amqp.exceptions import ChannelError, RecoverableConnectionError

from ..broker.amqp.answers import AnswerReader
from ..broker.amqp.shared_channel import SharedChannel
from ..broker.amqp.silence import PATIENCE, SILENCE, ask_for_a_sign, no_sign
from ..broker.leased_producer import LeasedProducer
from ..broker.own_errors import raised_by_library
from .exchange_line import ExchangeLine

__all__ = ["MOST_CHANNELS", "SharedConnection"]

#: Channels that are kept on one connection; another exchange takes the one that was used least recently.
MOST_CHANNELS = 16
#: Channels that a connection must have: besides those of the exchanges, the pool's own and one to ask on.
FEWEST_CHANNELS = 32
#: Seconds for the rest of a frame whose beginning has come.
REST_OF_A_FRAME = 5.0
#: Seconds between two looks at that.
LOOK = 0.5


class SharedConnection:
    """A connection with the channels of the exchanges, which stay open between two leases.

    One thread writes at a time, and one reads; these may be two.

    :param session: that of the connection.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._established: Any = session.connection.established
        self._transport: Any = session.transport
        #: Bytes of a frame that were agreed on.
        self.frame_max: int = self._established.frame_max
        self._writes = 0
        self._answers = AnswerReader(self._established, self._transport)
        #: The exchanges that have messages or a channel here.
        self.lines: dict[str, ExchangeLine] = {}
        self._view: Any = None
        #: What ended it.
        self.lost: BaseException | None = None
        #: Since when it is shared, in seconds of ``time.monotonic``.
        self.since = 0.0
        #: When the broker was heard last, and when it was asked for a sign; ``None`` if it was not, or has answered.
        self._heard = 0.0
        self._silent = False
        self._asked: float | None = None

    @classmethod
    def of(cls, view: LeasedProducer) -> SharedConnection | None:
        """Return the connection of *view*, a lease; ``None`` if it is not py-amqp's own, or somebody instruments it."""
        session: Any = view.leased_item.pooled_session
        if not (session.can_be_shared and view.publishes_as_kombu):
            return None
        if session.connection.established.channel_max < FEWEST_CHANNELS:
            return None
        shared: SharedConnection | None = session.shared
        if shared is None:
            shared = session.shared = cls(session)
        shared._view = view
        shared.since = time.monotonic()
        shared._hear()
        return shared

    def _hear(self) -> None:
        self._heard, self._silent, self._asked = time.monotonic(), False, None

    @property
    def is_lost(self) -> bool:
        """Whether it has ended, as :attr:`lost` says."""
        return self.lost is not None

    # -- writing ------------------------------------------------------------------------------------------

    def channel_of(self, line: ExchangeLine) -> bytes:
        """Give *line* a channel if it needs one; return what must be written before its next message."""
        self._writes += 1
        line.used = self._writes
        if line.channel is not None and not line.stale:
            return b""
        ending = b""
        if line.channel is not None:
            ending = self._end(line)
        else:
            ending = self._make_room()
        channel = SharedChannel(
            self._established, SharedChannel.free_number(self._established), line.channel_closed
        )
        channel.events["basic_return"].add(
            lambda error, exchange, routing_key, message: line.on_return(
                error.reply_code,
                error.reply_text,
                exchange,
                routing_key,
                message.properties.get("message_id"),
            )
        )
        channel.events["basic_ack"].add(line.ack)
        channel.events["basic_nack"].add(line.nack)
        line.begin(channel)
        self._answers.add(channel.channel_id, line)
        return ending + channel.opening

    def _make_room(self) -> bytes:
        """End the channel that was used least recently, if there are many; return what tells the broker."""
        open_lines = [one for one in self.lines.values() if one.channel is not None]
        idle = [one for one in open_lines if one.is_idle]
        if len(open_lines) < MOST_CHANNELS or not idle:
            return b""
        least = min(idle, key=lambda one: one.used)
        del self.lines[least.exchange]
        return self._end(least)

    def _end(self, line: ExchangeLine) -> bytes:
        """Forget the channel of *line*; return what tells the broker."""
        channel, line.channel = line.channel, None
        self._answers.remove(channel.channel_id)
        ending: bytes = channel.closing
        return ending

    def answer_closing(self, line: ExchangeLine) -> None:
        """Tell the broker that the closing of *line*'s channel is noted, and forget the channel."""
        channel, line.channel = line.channel, None
        if channel is not None:
            self._answers.remove(channel.channel_id)
            self.write(channel.assent)
            channel.collect()

    def write(self, data: bytes) -> bool:
        """Write *data*, whole frames; return whether all of it was written, and not only a part.

        An error ends the connection, and is found in :attr:`lost`.
        """
        try:
            whole: bool = self._transport.write_at_once(data)
            return whole
        except (OSError, RecoverableConnectionError) as error:
            self._lose(error)
            if not raised_by_library(error):
                raise
            return True
        except BaseException as error:
            self._lose(error)
            raise

    @property
    def is_unfinished(self) -> bool:
        """Whether a part of what was written waits for room in the socket."""
        return bool(self._transport.unfinished)

    def wait_for_room(self, seconds: float) -> None:
        """Wait until the socket takes more, or for *seconds*; another thread has to read meanwhile."""
        self._transport.wait_for_room(seconds)

    def flush(self, until: float) -> None:
        """Write what waits for room, and read meanwhile; only for who leads.

        :param until: in seconds of ``time.monotonic``; the connection is lost if it takes longer.
        """
        self._io(until, self._transport.flush)

    # -- reading ------------------------------------------------------------------------------------------

    def read(self, until: float, *, owes: bool = True) -> None:
        """Pass on what the broker has said, or says until *until*, in seconds of ``time.monotonic``.

        An error ends the connection, and is found in :attr:`lost`. So does silence.

        :param owes: whether the broker owes an answer, and may be expected to give a sign.
        """
        session, transport = self._session, self._transport
        session.deadline = min(until, time.monotonic() + LOOK)
        try:
            if not self._answers.read():
                session.deadline = time.monotonic() + REST_OF_A_FRAME
                self._established.drain_events()
            self._hear()
        except TimeoutError as error:
            if transport.torn or not raised_by_library(error) or self._answers.has_a_part:
                self._lose(error)
                if not raised_by_library(error):
                    raise
            elif owes:
                self._note_silence()
            else:
                # Its time begins with the next message.
                self._hear()
        except ChannelError as error:
            # A channel that somebody else has left open: none of ours raises.
            self._lose(error)
        except BaseException as error:
            self._lose(error)
            if not isinstance(error, Exception) or not raised_by_library(error):
                raise
        finally:
            session.deadline = None

    @property
    def is_silent(self) -> bool:
        """Whether the broker owes an answer and was not heard for so long that it has to be asked for a sign."""
        return self.lost is None and self._silent and self._asked is None

    def ask_for_a_sign(self) -> None:
        """Ask the broker for something that the connection answers, whatever its queues do; only for who writes."""
        ask_for_a_sign(self._established, self.write)
        self._asked = time.monotonic()

    def _note_silence(self) -> None:
        """Give the connection up if the broker has been asked for a sign, and has given none."""
        now = time.monotonic()
        self._silent = now - self._heard >= SILENCE
        if self._asked is not None and now - self._asked >= PATIENCE:
            self._lose(no_sign(now - self._heard))

    def _io(self, until: float, work: Callable[[], object]) -> None:
        self._session.deadline = until
        try:
            work()
        except BaseException as error:
            self._lose(error)
            if not isinstance(error, Exception) or not raised_by_library(error):
                raise
        finally:
            self._session.deadline = None

    def interrupt(self, error: BaseException) -> None:
        """Give the connection up, because *error* has interrupted who wrote, or who passed on what the broker said."""
        self._lose(error)

    def _lose(self, error: BaseException) -> None:
        if self.lost is None:
            if not isinstance(error, Exception) or not raised_by_library(error):
                # It is that of one caller, and none of the others'.
                error = RecoverableConnectionError(
                    f"another publish was interrupted by {type(error).__name__}"
                )
            self.lost = error

    # -- its end ------------------------------------------------------------------------------------------

    def give_back(self) -> None:
        """End the lease. The connection is closed if it was lost, or if an answer is missing.

        If that is interrupted, it can be called again.
        """
        view = self._view
        if view is None:
            return
        for line in self.lines.values():
            line.settled = line.answered = line.closed = None
        unanswered = [line for line in self.lines.values() if line.pending]
        if self.lost is not None or unanswered:
            view.discard()
        else:
            view.release()
        self._view = None
