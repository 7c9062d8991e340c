"""Publishing over one connection that all threads of the process share.

A caller puts its message into the queue. Whoever finds nobody writing writes what has gathered there; one of those who
wait reads the answers for all. The connection is a lease of the pool, taken when there is something to publish, and
given back when all messages have their outcome.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from amqp import spec

from ..broker.amqp.outcomes import is_for_a_channel, is_for_a_publish
from ..broker.own_errors import raised_by_library
from ..engine import fork
from ..engine.reentrant_queue import ReentrantQueue
from ..engine.threads import spawn_thread
from ..errors import Outcome
from ..settings import RetryPolicy
from .channel_numbers import ChannelNumbers
from .errors import CannotBeShared
from .exchange_line import ExchangeLine
from .in_flight import InFlight
from .lender import Lender
from .outgoing import Outgoing
from .reader import Reader
from .refused import Refused
from .roles import LEAD, WRITE, Roles
from .shared_connection import SharedConnection
from .unattended import Unattended
from .verdicts import Verdicts

__all__ = ["LONGEST_USE", "Publisher"]

logger = logging.getLogger("kombu_pools_ext")

#: Seconds for which one lease is kept while there is always something to publish: a drain, a reset and MAX_LIFETIME
#: come to their turn then.
LONGEST_USE = 1.0
#: Seconds for which nothing is written then, until the answers are there; else the lease goes on, and the next time
#: twice as many, up to the second.
FIRST_STOP, LONGEST_STOP = 0.05, 1.0
#: Bytes that are joined for one write.
GATHERED = 65536
#: Seconds between two looks at the time of those messages that no thread waits for.
LOOK = 0.1
#: Seconds for which the reading thread waits for a lease before it looks at the messages again.
LONGEST_ACQUIRE = 1.0
#: Seconds: a lock takes no more than some weeks.
LONGEST_WAIT = 3600.0
#: Seconds between two looks of one who cannot go on at something that another thread does in microseconds.
BRIEFLY = 0.005


class Publisher:
    """The shared road of one producer pool.

    :param pool: lends the connection.
    :param in_flight: how many messages may be without an answer; others are written when there is room.
    :param share: makes the shared connection of a lease, or ``None`` where it cannot be shared.
    :param clock: the time in seconds, like ``time.monotonic``.
    :param spawn: starts a thread, like :func:`.threads.spawn_thread`.
    """

    def __init__(
        self,
        pool: Lender,
        in_flight: int,
        *,
        share: Callable[[Any], SharedConnection | None] = SharedConnection.of,
        clock: Callable[[], float] = time.monotonic,
        spawn: Callable[[Callable[[], None], str], bool] = spawn_thread,
    ) -> None:
        self._pool = pool
        self._most = in_flight
        self._share = share
        self._clock = clock
        self._spawn = spawn
        #: Whether the connections of the pool turned out to be none that can be shared.
        self.unfit = False
        #: For what channels messages are encoded before they are written.
        self.numbers = ChannelNumbers()
        self._verdicts = Verdicts(pool)
        self._begin()
        fork.register(self)

    def _begin(self) -> None:
        # Each is changed in single steps of the interpreter, or by who has a role; there is no lock.
        self._roles = Roles()
        #: Messages in the order of the calls, until who writes puts them into the lines of their exchanges.
        self._queue: deque[Outgoing] = deque()
        self._lines: dict[str, ExchangeLine] = {}
        #: Lines in which something may be written; and those whose channel the broker has closed.
        self._ready: dict[ExchangeLine, None] = {}
        self._closed: deque[ExchangeLine] = deque()
        self._refused = Refused()
        self._in_flight = InFlight()
        #: Threads that wait for their outcome, in the order in which they came.
        self._waiting: dict[ReentrantQueue[Any], Outgoing] = {}
        self._connection: SharedConnection | None = None
        #: Threads that are in here: a signal handler or finalizer that interrupts one publishes over a lease.
        self._inside: set[int] = set()
        self._reader = Reader(self.read_for_all, self._spawn, inside=self._inside)
        #: Messages that no thread waits for, and those among them that have their outcome and were not told yet.
        self._unattended = Unattended(self._in_flight, self._reader)
        #: Seconds of the next stop.
        self._stop = FIRST_STOP
        #: How many connections were lost since a message was confirmed, for the pauses between two.
        self._lost_in_a_row = 0
        #: How many connections there were, one after the other; and the last of them.
        self.connections = 0
        self._former: weakref.ref[SharedConnection] | None = None

    def after_fork_in_child(self) -> None:
        """Forget what is in flight: it is the parent's."""
        self._begin()

    @property
    def interrupts_itself(self) -> bool:
        """Whether the calling thread is in the middle of a publish here, which a signal handler has interrupted."""
        return threading.get_ident() in self._inside

    @property
    def live(self) -> int:
        """How many messages have no outcome yet."""
        return len(self._in_flight)

    def tell(self) -> None:
        """Call what waits to be told of the outcomes of submitted messages; for the reading thread."""
        self._reader.tell()

    # -- a caller that waits ------------------------------------------------------------------------------

    def publish(self, message: Outgoing) -> None:
        """Publish *message*, and return when the broker has it.

        :raises CannotBeShared: if the connections of the pool cannot be shared; nothing was sent.
        :raises PublishError: what has become of it.
        :raises Exception: what the pool raises if there is no connection, or py-amqp if the broker refused it.
        """
        if not fork.mark[0]:
            fork.child_begins()
        me: ReentrantQueue[Any] = ReentrantQueue()
        thread = threading.get_ident()
        try:
            try:
                self._inside.add(thread)
                self._in_flight.add(message)
                message.settled = me.put
                self._waiting[me] = message
                self._queue.append(message)
                self._write(me)
                self._wait(message, me)
            except BaseException as error:
                if self._abandon(message, error):
                    # As below: what the traceback holds, a lease perhaps, would wait for the collector.
                    message.forget_error()
                    raise
            finally:
                self._leave(message, me, thread)
        except BaseException:
            # That may have been interrupted, too: others would wait for what it has not given back.
            self._leave(message, me, thread)
            raise
        if message.error is not None:
            try:
                raise message.error
            finally:
                # Else there would be a cycle: the error holds its traceback, the traceback this frame.
                message.forget_error()

    def _leave(self, message: Outgoing, me: ReentrantQueue[Any], thread: int) -> None:
        """End the part of a caller. Each step may be done twice."""
        self._waiting.pop(me, None)
        self._roles.give_all_back(me)
        self._in_flight.forget(message)
        self._end_use(me)
        self._pass_on()
        self._inside.discard(thread)

    def _wait(self, message: Outgoing, me: ReentrantQueue[Any]) -> None:
        while not message.done:
            left = message.until - self._clock()
            if left <= 0:
                self._expire(message)
                return
            # Registered before: who leaves the lead looks for the next after that.
            if self._roles.take(LEAD, me):
                try:
                    self._lead(message, me)
                finally:
                    self._roles.give_back(LEAD, me)
            else:
                me.get(min(left, LONGEST_WAIT))

    def _abandon(self, message: Outgoing, error: BaseException) -> bool:
        """Give *message* up, whose caller leaves with *error*; return whether that is what it gets."""
        told = isinstance(error, Exception) and raised_by_library(error)
        message.settle(error)
        # In this order: who writes notes that first, and looks then whether it is done.
        if told:
            if message.written and message.error is error:
                # There was no other connection.
                message.correct(self._verdicts.unknown(message, error))
            self._drop_what_is_done()
            return not message.written
        became = "may be in the broker, or not" if message.written else "was not sent"
        error.add_note(
            f"pool {self._pool.name!r}: the publish of message {message.message_id} was interrupted; it {became}"
        )
        # Among them one that this caller has given an outcome, and was interrupted before it was told.
        for one in list(self._waiting):
            one.put(None)
        return True

    def _pass_on(self) -> None:
        """Have somebody else lead, if nobody does."""
        if self._roles.is_free(LEAD):
            if self._unattended and self._reader.runs():
                self._reader.wake()
                return
            for one in list(self._waiting):
                one.put(None)
                return

    # -- a caller that does not wait ----------------------------------------------------------------------

    def submit(
        self, message: Outgoing, told: Callable[[Outgoing], object], *, at_once: bool = True
    ) -> None:
        """Publish *message*, and return at once.

        :param told: called when *message* has its outcome: in a thread of the publisher; or, after success and unless
            it is to be written *at_once*, by whoever learns of it, and perhaps twice. It must not block.
        :param at_once: otherwise the caller calls :meth:`write` soon: for many messages together that is one write.
        :raises RuntimeError: if no thread can be started, or must not be; nothing was sent then.
        """
        if not fork.mark[0]:
            fork.child_begins()
        if not self._reader.runs():
            raise RuntimeError(
                f"pool {self._pool.name!r}: no thread can be started here, so only publish() works"
            )
        try:
            self._unattended.add(message, told, by_anybody=not at_once)
            self._queue.append(message)
            if at_once:
                self.write()
        except BaseException as error:
            # The caller gets the error, and is not told a second time.
            message.settled = None
            self._abandon(message, error)
            self._unattended.forget(message)
            raise

    def write(self) -> None:
        """Write what was submitted, unless another thread does, and have the reading thread wait for the answers."""
        me: ReentrantQueue[Any] = ReentrantQueue()
        thread = threading.get_ident()
        # It is there in the reading thread, in which outcomes are told; or this has interrupted who writes or reads.
        nested = thread in self._inside
        try:
            self._inside.add(thread)
            if not nested:
                self._write(me, may_wait=False)
        finally:
            self._roles.give_back(WRITE, me)
            self._reader.wake()
            if not nested:
                self._inside.discard(thread)

    def read_for_all(self, me: ReentrantQueue[Any]) -> float | None:
        """Do what is due for those messages that no thread waits for; called by the reading thread.

        :returns: seconds until the next look; ``None`` if there is none of them.
        """
        try:
            if not self._unattended:
                return None
            if not self._roles.take(LEAD, me):
                self._expire_unattended()
                return LOOK
            self._lead_unattended(me)
        finally:
            self._roles.give_all_back(me)
            self._end_use(me)
            self._pass_on()
        return LOOK if self._unattended else None

    def _lead_unattended(self, me: ReentrantQueue[Any]) -> None:
        looked = 0.0
        until = 0.0
        while self._unattended:
            now = self._clock()
            if now - looked >= LOOK:
                looked = now
                until = self._expire_unattended()
                # Before what may wait for a connection.
                self._reader.tell()
            bound = min(until, now + LONGEST_ACQUIRE)
            try:
                self._step(bound, now, me, read_until=now + LOOK)
            except Exception as error:
                if not raised_by_library(error):
                    raise
                # What the pool refuses at once will not pass by itself; an outage may.
                self._no_connection(error, final=self._clock() - now < (bound - now) * 0.9)
            self._reader.tell()

    def _expire_unattended(self) -> float:
        """Settle what nobody waits for and whose time is up; return when it is up for the next."""
        now, until = self._clock(), float("inf")
        for message in self._unattended.all():
            if message.done:
                # Who settled it was interrupted before it was told.
                if message.settled is not None:
                    message.settled(message)
                self._unattended.drop(message)
            elif message.until <= now:
                self._expire(message)
            else:
                until = min(until, message.until)
        return until

    def _no_connection(self, error: Exception, *, final: bool) -> None:
        """Settle what cannot be sent because of *error*, with which no connection was lent.

        :param final: whether it concerns also messages that have time left.
        """
        for message in self._unattended.all():
            if final:
                self._abandon(message, self._verdicts.copy_of(error))
            elif message.until <= self._clock():
                waited = self._clock() - message.began
                self._abandon(message, self._verdicts.not_sent(message, waited, is_lent=False))

    # -- leading ------------------------------------------------------------------------------------------

    def _lead(self, message: Outgoing, me: ReentrantQueue[Any]) -> None:
        """Read for all until *message* has its outcome, or has waited for long enough."""
        while not message.done:
            now = self._clock()
            if now >= message.until:
                return
            self._step(message.until, now, me)

    def _step(
        self, until: float, now: float, me: ReentrantQueue[Any], read_until: float = float("inf")
    ) -> None:
        connection = self._connection
        if connection is None:
            self._connect(until, now)
        elif (lost := connection.lost) is not None:
            self._recover(connection, lost, until, me)
        else:
            due = self._refused.send(now, self._queue.append)
            self._write(me)
            if connection.is_lost or self._is_over(connection, now, me):
                return
            if read_until < until and self._reader.has_calls:
                # Somebody waits to be told, and may have the next message.
                return
            # Also if nothing was sent yet: another thread may be writing.
            # Others write nothing from the end of its use on, until the lease is a new one, or goes on.
            over = connection.since + LONGEST_USE
            if over <= now:
                over = now + FIRST_STOP
            owes = not self._blocked and self._unanswered() > 0
            connection.read(min(until, read_until, due, over), owes=owes)
            if connection.is_silent:
                self._ask_for_a_sign(connection, me)

    def _ask_for_a_sign(self, connection: SharedConnection, me: ReentrantQueue[Any]) -> None:
        try:
            # Numbers of channels are for who writes.
            if self._roles.take(WRITE, me):
                connection.ask_for_a_sign()
        finally:
            self._roles.give_back(WRITE, me)

    @property
    def _blocked(self) -> bool:
        return self._pool.blocked is not None

    def _connect(self, until: float, now: float) -> None:
        view: Any = None
        seconds = None if until == float("inf") else max(0.0, until - now)
        try:
            view = self._pool.acquire(block=True, timeout=seconds)
            connection = self._share(view)
            if connection is not None:
                self.numbers.frame_max = connection.frame_max
                if self._former is None or self._former() is not connection:
                    self.connections += 1
                    self._former = weakref.ref(connection)
                self._take_over(connection)
                self._connection = connection
        except BaseException:
            if view is not None and self._connection is None:
                view.release()
            raise
        if connection is None:
            view.release()
            self._share_no_more()

    def _share_no_more(self) -> None:
        """Have everything published over leases from now on."""
        self.unfit = True
        for one in self._in_flight.messages():
            if not one.written or one.tries != 0:
                one.settle(CannotBeShared())

    def _take_over(self, connection: SharedConnection) -> None:
        """Have what was not written yet written on *connection*. If that is interrupted, nothing is lost."""
        lines = connection.lines
        for old in self._lines.values():
            if old.backlog and old.exchange not in lines:
                lines[old.exchange] = ExchangeLine(old.exchange)
        for line in list(lines.values()):
            waiting = self._lines.get(line.exchange)
            line.backlog = deque() if waiting is None else waiting.backlog
            if line.backlog and waiting is not None:
                line.careful = waiting.careful
                self._ready[line] = None
            self._attach(line)
            if line.closed_with is not None:
                # The broker has closed its channel between two leases, or in another one.
                self._closed.append(line)
        self._lines = lines

    def _attach(self, line: ExchangeLine) -> None:
        line.settled, line.answered = self._answered, self._go_on
        line.closed = self._closed.append

    def _line_to(self, exchange: str) -> ExchangeLine:
        line = self._lines.get(exchange)
        if line is None:
            line = ExchangeLine(exchange)
            self._attach(line)
            self._lines[exchange] = line
        return line

    def _is_over(self, connection: SharedConnection, now: float, me: ReentrantQueue[Any]) -> bool:
        """Whether the lease was kept for long enough, and has just been ended for that, or begun anew."""
        kept = now - connection.since
        if kept < LONGEST_USE or not self._roles.take(WRITE, me):
            return False
        try:
            if any(
                not one.done
                for line in list(self._lines.values())
                for one in list(line.pending.values())
                if isinstance(one, Outgoing)
            ):
                if kept > LONGEST_USE + self._stop:
                    # One is waited for that takes its time: the others must not. The next stop is longer.
                    connection.since = now
                    self._stop = min(2 * self._stop, LONGEST_STOP)
                    # To write what has gathered.
                    return True
                return False
            self._stop = FIRST_STOP
            self._give_back(connection)
            return True
        finally:
            self._roles.give_back(WRITE, me)

    def _give_back(self, connection: SharedConnection) -> None:
        """End the lease; only for who leads and writes. What is not written yet waits for the next one."""
        waiting: dict[str, ExchangeLine] = {}
        for line in list(self._lines.values()):
            if line.backlog:
                kept = waiting[line.exchange] = ExchangeLine(line.exchange)
                kept.careful = line.careful
                kept.backlog = line.backlog
        self._lines = waiting
        self._ready.clear()
        self._closed.clear()
        try:
            connection.give_back()
        except Exception:
            # The messages have their outcomes all the same.
            logger.exception(
                "pool %r: a shared connection could not be given back", self._pool.name
            )
        except BaseException:
            connection.give_back()
            raise
        finally:
            self._connection = None

    def _recover(
        self,
        connection: SharedConnection,
        error: BaseException,
        until: float,
        me: ReentrantQueue[Any],
    ) -> None:
        """Give a lost connection back, and have what it owes an answer sent again on the next one."""
        if not self._roles.take(WRITE, me):
            me.get(BRIEFLY)
            return
        again = 0
        try:
            alone = self._unanswered() == 1
            for line in list(self._lines.values()):
                again += self._take_back(line, error, alone=alone and is_for_a_publish(error))
            self._give_back(connection)
        finally:
            self._roles.give_back(WRITE, me)
        if again:
            logger.info(
                "pool %r: messages without an answer, %d of them, are sent again on another connection, after %s: %s",
                *(self._pool.name, again, type(error).__name__, error),
            )
        if is_for_a_channel(error):
            logger.warning(
                "pool %r: the broker allows no further channel (%s), so messages are published over a lease each",
                self._pool.name,
                error,
            )
            self._share_no_more()
        policy = self._pool.retry or RetryPolicy()
        pause = min(
            policy.interval_start + self._lost_in_a_row * policy.interval_step, policy.interval_max
        )
        self._lost_in_a_row += 1
        if pause and self._in_flight:
            me.get(max(0.0, min(pause, until - self._clock())))

    def _unanswered(self) -> int:
        count = 0
        for line in list(self._lines.values()):
            count += len(line.pending)
        return count

    def _take_back(
        self, line: ExchangeLine, error: BaseException, *, alone: bool, counts: bool = True
    ) -> int:
        """Have the messages of *line* without an answer sent again, or settle them, because of *error*.

        Return how many are sent again.

        :param alone: whether *error* is the broker's answer to the only message there was.
        :param counts: whether it was one of the tries that a message has.
        """
        again = []
        for message in line.unanswered:
            if message.done:
                continue
            if alone:
                message.settle(self._verdicts.refused(message, error, certain=line.careful))
            elif message.tries == 0:
                message.settle(self._verdicts.unknown(message, error))
            else:
                if counts and message.tries is not None:
                    message.tries -= 1
                message.unanswered = True
                message.begin_again()
                again.append(message)
        line.send_again(again)
        return len(again)

    # -- writing ------------------------------------------------------------------------------------------

    def _write(self, me: ReentrantQueue[Any], *, may_wait: bool = True) -> None:
        """Write what may be written, unless somebody else does.

        :param may_wait: whether to wait for room in the socket; otherwise who leads does that.

        Who comes while another one writes has put its message into the queue before; who writes looks there after it
        has given the role back. So one of the two sees it.
        """
        while (connection := self._connection) is not None:
            unfinished = connection.is_unfinished
            if not (self._queue or self._ready or self._closed or unfinished):
                return
            if (unfinished and not may_wait) or connection.lost is not None or self._blocked:
                return
            if not self._closed and self._clock() - connection.since >= LONGEST_USE:
                return
            if not self._roles.take(WRITE, me):
                return
            try:
                # Again: the lease may have ended before this one had the role.
                if self._connection is not connection:
                    continue
                try:
                    if not self._write_all(connection):
                        # Who leads tries again after each answer.
                        return
                except BaseException as error:
                    # What was numbered was not written.
                    connection.interrupt(error)
                    raise
                until = self._clock() + self._pool.confirm_timeout
                while may_wait and connection.is_unfinished and not connection.is_lost:
                    self._finish(connection, until, me)
            finally:
                self._roles.give_back(WRITE, me)

    def _finish(self, connection: SharedConnection, until: float, me: ReentrantQueue[Any]) -> None:
        """Write the rest of what the socket had no room for, until *until*. Somebody has to read meanwhile."""
        had = self._roles.has(LEAD, me)
        if not had and not self._roles.take(LEAD, me):
            connection.wait_for_room(BRIEFLY)
            connection.write(b"")
            if self._clock() >= until:
                connection.interrupt(TimeoutError("the broker did not read in time"))
            return
        try:
            connection.flush(until)
        finally:
            if not had:
                self._roles.give_back(LEAD, me)
                self._pass_on()

    def _write_all(self, connection: SharedConnection) -> bool:
        """Write what may be written; return whether that is all that is there to write for now."""
        while self._closed:
            self._channel_closed(connection, self._closed[0])
            self._closed.popleft()
        queue, ready = self._queue, self._ready
        while queue:
            message = queue[0]
            line = self._line_to(message.exchange)
            # If an interruption comes between the two steps, it is there already.
            if not line.backlog or line.backlog[-1] is not message:
                line.backlog.append(message)
            queue.popleft()
            ready[line] = None
        parts: list[bytes] = []
        size = 0
        room = self._most - self._unanswered()
        for line in list(ready):
            # In this order: who leads puts it there again when an answer allows for the next message.
            ready.pop(line, None)
            while line.backlog and line.may_write:
                if room <= 0 or self._in_flight.has_no_room_for(line.backlog[0]):
                    ready[line] = None
                    room = 0
                    break
                frames = self._frames_of_next(connection, line)
                if frames:
                    room -= 1
                    parts.append(frames)
                    size += len(frames)
                    if size >= GATHERED:
                        connection.write(b"".join(parts))
                        parts, size = [], 0
        if parts:
            connection.write(b"".join(parts))
        return room > 0

    def _frames_of_next(self, connection: SharedConnection, line: ExchangeLine) -> bytes:
        """Number the next message of *line*; return its frames, or nothing if it is not sent."""
        message = line.backlog[0]
        before = message.written
        message.written = True
        if message.declare and message.declared_on != self.connections:
            # Another connection may be one of another broker: a lease declares it there.
            line.backlog.popleft()
            message.written = before
            message.settle(CannotBeShared())
            return b""
        if message.done or (not before and not message.begins()):
            line.backlog.popleft()
            message.settle()
            return b""
        opening = connection.channel_of(line)
        number = line.channel.channel_id
        if opening:
            self.numbers.note(line.exchange, number)
        try:
            frames = message.frames(number, connection.frame_max)
        except Exception as error:
            line.backlog.popleft()
            message.written = before
            message.settle(error)
            return opening
        if not before:
            message.until = self._clock() + message.seconds
        line.number(message)
        line.backlog.popleft()
        return opening + frames

    # -- what the broker says -----------------------------------------------------------------------------

    def _answered(self, message: Any) -> None:
        """Called by who leads, with a message that the broker has answered."""
        if message.outcome is Outcome.ACKED:
            self._lost_in_a_row = 0
            message.settle()
            return
        policy = self._pool.retry or RetryPolicy()
        if message.outcome is Outcome.NACKED and message.tries != 0 and policy.nacked:
            self._refused.add(message, self._clock(), policy)
        else:
            message.settle(self._verdicts.as_told(message))

    def _go_on(self, line: ExchangeLine) -> None:
        """Called by who leads, when messages of *line* were answered."""
        if line.careful and not line.backlog and not line.pending:
            line.careful = False
        if line.backlog and line.may_write:
            self._ready[line] = None

    def _channel_closed(self, connection: SharedConnection, line: ExchangeLine) -> None:
        """Tell the broker that its closing was noted, and find out which message it was for.

        If there was one, it was that. If there were several, they are sent again one by one: the broker may have had
        some of them, which a consumer knows by their ``message_id``.
        """
        error = line.closed_with
        connection.answer_closing(line)
        if error is None:
            return
        alone = len(line.pending) == 1 and getattr(error, "method_sig", None) == spec.Basic.Publish
        if alone:
            self._take_back(line, error, alone=True)
            line.careful = bool(line.backlog)
        else:
            line.careful = True
            # It was not the connection that broke.
            self._take_back(line, error, alone=False, counts=False)
        if line.backlog:
            self._ready[line] = None

    # -- ends ---------------------------------------------------------------------------------------------

    def _expire(self, message: Outgoing) -> None:
        """Settle *message*, whose time is up."""
        if message.done:
            return
        if message.nacks and message.outcome is Outcome.NACKED:
            message.settle(self._verdicts.as_told(message))
            return
        written = message.written
        if written:
            message.settle(self._verdicts.late(message))
            return
        waited, is_lent = self._clock() - message.began, self._connection is not None
        error = self._verdicts.not_sent(message, waited, is_lent=is_lent and not self._blocked)
        if message.settle(error):
            # In this order: who writes notes that first, and looks then whether it is done.
            if message.written:
                message.correct(self._verdicts.late(message))
            else:
                self._drop_what_is_done()

    def _drop_what_is_done(self) -> None:
        """Drop messages whose time was up before there was a connection: in an outage nobody else does."""
        me = object()
        try:
            if self._roles.take(WRITE, me):
                for waiting in (
                    self._queue,
                    *[line.backlog for line in list(self._lines.values())],
                ):
                    while waiting and waiting[0].done:
                        waiting.popleft()
        finally:
            self._roles.give_back(WRITE, me)

    def _end_use(self, me: ReentrantQueue[Any]) -> None:
        """Give the connection back if nobody needs it."""
        while (connection := self._connection) is not None and not self._in_flight:
            # Who has the lead, or writes, looks for that itself when it leaves.
            if not self._roles.take(LEAD, me):
                return
            try:
                if not self._roles.take(WRITE, me):
                    return
                # Again: somebody may have come, or given it back.
                if self._connection is connection and not self._in_flight:
                    self._refused.forget()
                    self._give_back(connection)
            finally:
                self._roles.give_all_back(me)
