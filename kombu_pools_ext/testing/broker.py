"""The broker in memory: its virtual hosts, its connections, and the order in which it does things."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from .clock import Clock, SystemClock
from .link import Link
from .model.message import Message
from .model.vhost import VirtualHost
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
        """Return the client's socket of a new connection."""
        link = Link(self.name, self._received, self._left)
        connection = Connection(self, link.to_client, link.hang_up)
        client = link.open()
        self._links[link] = connection
        return client

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
        channel.check(sent)
        vhost = channel.vhost
        queues, taken = vhost.publish(sent)
        if not queues and incoming.mandatory and not vhost.takes(sent.exchange):
            channel.give_back(sent)
        if channel.confirms:
            channel.confirm(channel.published, taken)

    def holds(self, connection: Connection) -> bool:
        return False

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
