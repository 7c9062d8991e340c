"""The broker in memory: its virtual hosts, its connections, and the order in which it does things."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from ..errors import Outcome
from .clock import Clock, SystemClock
from .faults import Fault, Faults
from .late import LateAnswers
from .link import Link
from .model.message import Message
from .model.refusals import Refusal
from .model.vhost import VirtualHost
from .publication import REFUSED, publication_of
from .published import Published
from .wire.channel import Channel, Incoming
from .wire.connection import Connection
from .wire.frames import make_message

__all__ = ["Broker"]

#: Seconds that a fork waits for a thread that is at work in the broker.
LONGEST_WAIT = 1.0


class Broker:
    """A broker within the process that answers like RabbitMQ.

    Any thread may use it. One thread at a time does what was asked, in the order in which it was asked.

    :param name: what its URL calls it: ``test://name``.
    :param clock: its time.
    :param takes_undeclared: whether a message is taken whose exchange or queue nobody has declared, and counts as
        routed. Otherwise it is refused, or returned, as by RabbitMQ.
    """

    def __init__(
        self, name: str = "default", *, clock: Clock | None = None, takes_undeclared: bool = False
    ) -> None:
        self.name = name
        self.clock: Clock = SystemClock() if clock is None else clock
        self.takes_undeclared = takes_undeclared
        #: What was published, to this broker or to all that share the list.
        self.published = Published()
        self._faults = Faults()
        self._vhosts: dict[str, VirtualHost] = {}
        self._links: dict[Link, Connection] = {}
        #: What is to be done, each by a call.
        self._inbox: deque[Callable[[], object]] = deque()
        self._lock = threading.RLock()
        self._is_at_work = False
        self._held_for_fork = False
        #: When it is woken next, and what calls that off.
        self._alarm: float | None = None
        self._call_off: Callable[[], object] = lambda: None
        _brokers.add(self)

    def __repr__(self) -> str:
        return f"<Broker test://{self.name}: {len(self._links)} connections>"

    # -- order --------------------------------------------------------------------------------------------

    def do(self, work: Callable[[], object]) -> None:
        """Have *work* done, and return when it is; others wait meanwhile.

        A signal handler, or a finalizer, that interrupts the thread which is at work does not wait: what it asks for is
        done after that.
        """
        self._inbox.append(work)
        while self._inbox:
            with self._lock:
                # The lock lets the thread in that has it.
                if self._is_at_work:
                    return
                self._is_at_work = True
                try:
                    self._work()
                finally:
                    self._is_at_work = False

    def _work(self) -> None:
        for vhost in self._vhosts.values():
            vhost.expire()
        while self._inbox:
            self._inbox.popleft()()
        for vhost in self._vhosts.values():
            vhost.tell_cancelled()
        self._set_alarm()

    def _set_alarm(self) -> None:
        times = [vhost.next_dead_letter for vhost in self._vhosts.values()]
        due = min((one for one in times if one is not None), default=None)
        if due is not None and (self._alarm is None or due < self._alarm):
            self._call_off()
            self._alarm = due
            self._call_off = self.clock.call_at(due, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self.do(lambda: None)

    # -- connections --------------------------------------------------------------------------------------

    def connect(self) -> Any:
        """Return the client's socket of a new connection.

        :raises ConnectionRefusedError: if the broker is down.
        """
        if self._faults.down:
            raise ConnectionRefusedError(f"the broker test://{self.name} is down")
        link = Link(self.name, self._received, self._left)
        answers = LateAnswers(
            link.to_client, self.clock, lambda: self._faults.delay, self._send_due
        )
        connection = Connection(self, answers.send, link.hang_up)
        client = link.open()
        self._links[link] = connection
        return client

    def _send_due(self, answers: LateAnswers) -> None:
        self.do(answers.send_due)

    def _received(self, link: Link, data: bytes) -> None:
        self.do(lambda: self._receive(link, data))

    def _receive(self, link: Link, data: bytes) -> None:
        connection = self._links.get(link)
        if connection is None:
            return
        try:
            connection.receive(data)
        except Exception as error:
            # It is the client that has asked for it, not the thread that is at work here.
            connection.end()
            link.fail(error)
        if connection.ended:
            self._links.pop(link, None)

    def _left(self, link: Link) -> None:
        self.do(lambda: self._end(link))

    def _end(self, link: Link) -> None:
        connection = self._links.pop(link, None)
        if connection is not None:
            connection.end()

    @property
    def connections(self) -> list[Connection]:
        """The connections that are open now."""
        return [one for one in list(self._links.values()) if one.is_open]

    def close(self) -> None:
        """End all connections, without a word."""
        self._call_off()
        for link in list(self._links):
            self._left(link)

    # -- what its connections ask -------------------------------------------------------------------------

    def vhost(self, name: str = "/") -> VirtualHost:
        """Return the virtual host of this name; any name is one."""
        if name not in self._vhosts:
            self._vhosts[name] = VirtualHost(
                name,
                clock=lambda: self.clock.monotonic(),
                wall_clock=lambda: self.clock.time(),
                make=make_message,
                takes_undeclared=lambda: self.takes_undeclared,
            )
        return self._vhosts[name]

    def take(
        self, connection: Connection, channel: Channel, incoming: Incoming, sent: Message
    ) -> None:
        vhost, queues, outcome, reason = channel.vhost, list[str](), REFUSED, ""
        try:
            channel.check(sent)
            if self._faults.refuses():
                outcome = Outcome.NACKED
            else:
                queues, taken = vhost.publish(sent)
                outcome = Outcome.ACKED if taken else Outcome.NACKED
                if not queues and incoming.mandatory and not vhost.takes(sent.exchange):
                    outcome = Outcome.RETURNED
                    channel.give_back(sent)
                elif self._faults.losing:
                    outcome = Outcome.UNKNOWN
        except Refusal as refusal:
            reason = refusal.text
            raise
        finally:
            self._note(sent, incoming, tuple(queues), outcome, reason)
        if outcome is Outcome.UNKNOWN:
            connection.end()
        elif channel.confirms:
            channel.confirm(channel.published, outcome is not Outcome.NACKED)

    def _note(
        self, sent: Message, incoming: Incoming, queues: tuple[str, ...], outcome: str, reason: str
    ) -> None:
        self.published.add(
            publication_of(
                sent,
                alias=self.name,
                mandatory=incoming.mandatory,
                queues=queues,
                outcome=outcome,
                reason=reason,
                on_commit=self.published.was_expected(
                    # The second one is the id of a task of Celery.
                    *map(sent.properties.get, ("message_id", "correlation_id"))
                ),
            )
        )

    def holds(self, connection: Connection) -> bool:
        return self._faults.blocked > 0

    # -- faults -------------------------------------------------------------------------------------------

    def down(self) -> Fault:
        """Be away: every connection breaks, and none can be made."""
        self._faults.down += 1
        self._break_all()

        def end() -> None:
            self._faults.down -= 1

        return Fault(end)

    def _break_all(self) -> None:
        for connection in list(self._links.values()):
            self.do(connection.end)

    def refuse_next(self, count: int = 1) -> Fault:
        """Refuse the next *count* messages with a ``nack``, as a full queue does.

        :raises ValueError: if *count* is not positive.
        """
        if count < 1:
            raise ValueError(f"refuse_next: expected one message or more, got {count!r}")
        self._faults.to_refuse += count

        def end() -> None:
            self._faults.to_refuse = 0

        return Fault(end)

    def lose_confirms(self) -> Fault:
        """Take each message, and break the connection before it is confirmed: nobody knows what became of it."""
        self._faults.losing += 1

        def end() -> None:
            self._faults.losing -= 1

        return Fault(end)

    def slow(self, seconds: float) -> Fault:
        """Let each answer take *seconds* of the broker's :attr:`clock`.

        :raises ValueError: if they are negative.
        """
        if seconds < 0:
            raise ValueError(f"slow: expected seconds, got {seconds!r}")
        self._faults.delays.append(seconds)
        return Fault(lambda: self._faults.delays.remove(seconds))

    def blocked(self) -> Fault:
        """Have an alarm: say so to whoever publishes, and read nothing more from them."""
        self._faults.blocked += 1

        def end() -> None:
            self._faults.blocked -= 1
            if not self._faults.blocked:
                self.do(self._unblock_all)

        return Fault(end)

    def _unblock_all(self) -> None:
        for connection in list(self._links.values()):
            connection.unblock()

    def close_connections(self, reason: str = "Closed via management plugin") -> Fault:
        """Close each connection that is open, as an administrator does. It is over at once."""

        def close_all() -> None:
            for connection in self.connections:
                connection.close(320, f"CONNECTION_FORCED - {reason}")

        self.do(close_all)
        return Fault(lambda: None)

    # -- forks --------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Wait until no other thread is in the middle of something, which a child would keep for ever."""
        # With a bound: a signal handler that forks may be called by the thread that has it.
        self._held_for_fork = self._lock.acquire(timeout=LONGEST_WAIT)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._held_for_fork:
            self._held_for_fork = False
            self._lock.release()
            self.do(lambda: None)

    def after_fork_in_child(self) -> None:
        """Keep what was declared and published, and forget the connections, which are the parent's."""
        self._lock = threading.RLock()
        self._is_at_work = False
        self._held_for_fork = False
        self._inbox.clear()
        self._alarm = None
        links, self._links = list(self._links.items()), {}
        for link, connection in links:
            link.forget()
            connection.end()


_brokers: weakref.WeakSet[Broker] = weakref.WeakSet()


def _each(step: Callable[[Broker], None]) -> Callable[[], None]:
    def run() -> None:
        for broker in list(_brokers):
            step(broker)

    return run


os.register_at_fork(
    before=_each(Broker.before_fork),
    after_in_parent=_each(Broker.after_fork_in_parent),
    after_in_child=_each(Broker.after_fork_in_child),
)
