"""The proxy: it listens, passes on, and does in one thread whatever a test asks for."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from .link import CHUNK, LINGER_NOT, Half, Link
from .script import read

__all__ = ["Proxy"]

#: Seconds in which what a test waits for must come true: far more than it takes.
EVENTUALLY = 30.0
BACKLOG = 128
#: Seconds that a connection to a socket of this machine takes at most, where there is room for it.
LOCALLY = 0.3


class Proxy:
    """Listens on a port of 127.0.0.1 and passes on to *host*:*port*; without them it accepts and says nothing."""

    def __init__(self, host: str | None = None, port: int | None = None) -> None:
        self._target = None if host is None or port is None else (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        #: Every connection so far, the oldest first.
        self.links: list[Link] = []
        #: Connections that came, whether they were served or not.
        self.accepted = 0
        self._refusing = False
        self._deaf = False
        #: Connections of our own that fill the queue of those who want to be accepted.
        self._fillers: list[socket.socket] = []
        self._faults: list[Callable[[Link], None]] = []
        self._mutes: list[socket.socket] = []
        self._bell, self._ear = socket.socketpair()
        self._ear.setblocking(False)
        self._asked: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="proxy", daemon=True)

    @property
    def address(self) -> str:
        """Host and port, as they stand in a URL."""
        return f"127.0.0.1:{self.port}"

    @property
    def alive(self) -> list[Link]:
        """The connections that are open now."""
        return [link for link in list(self.links) if not link.closed]

    def __repr__(self) -> str:
        return f"<Proxy {self.address}: {len(self.alive)} connections, {self.accepted} accepted>"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped = True
        self._bell.send(b"!")
        self._thread.join(EVENTUALLY)
        for link in self.alive:
            link.close()
        for sock in (*self._mutes, *self._fillers, self._listener, self._bell, self._ear):
            sock.close()

    # -- what a test does ------------------------------------------------------------------------------

    def cut(self, *, rst: bool = False) -> None:
        """Close every connection that exists; new ones are welcome."""
        for link in self.alive:
            link.cut(rst=rst)

    def reset(self) -> None:
        """Close every connection that exists with a RST; new ones are welcome."""
        self.cut(rst=True)

    def half_close(self, *directions: str) -> None:
        """End one way of every connection that exists with a FIN, while the other way goes on."""
        for link in self.alive:
            link.half_close(*directions)

    def refuse(self) -> None:
        """Reset whoever comes."""
        self._refusing = True

    def blackhole(self) -> None:
        """As if no packet arrived: what is open is silent, and who comes gets no answer to the knocking (on Linux)."""
        self.silence()
        self.run(self._turn_deaf)

    def hold(self, *directions: str) -> None:
        """Keep back what goes one way, or both."""
        self._fault(lambda link: link.hold(*directions))

    def silence(self) -> None:
        """The peer is dead: what is open stays open, who comes is accepted, and nobody hears a word."""
        self.hold()

    def drop(self, *directions: str) -> None:
        """Swallow what goes one way, or both; ends as well."""
        self._fault(lambda link: link.drop(*directions))

    def delay(self, seconds: float, *directions: str) -> None:
        """Pass on what goes one way, or both, so much later."""
        self._fault(lambda link: link.delay(seconds, *directions))

    def round_trip(self, seconds: float) -> None:
        """Make an answer come so much later than it would."""
        self.delay(seconds / 2)

    def drip(self, seconds: float, *directions: str) -> None:
        """Pass on what goes one way, or both, byte by byte, with a pause after each."""
        self._fault(lambda link: link.drip(seconds, *directions))

    def play(self, script: Any, *, coming: int | None = None) -> None:
        """Play a script on the connections that exist and all that come; or on the next *coming* alone.

        :param script: a list of ``(direction, place, action)`` or ``(direction, place, action, argument)``.
        :raises BadScript: with everything that is wrong with it.
        """
        steps = read(script)
        if coming is None:
            self._fault(lambda link: link.arm(steps))
            return
        left = [steps] * coming

        def next_one(link: Link) -> None:
            if left:
                link.arm(left.pop())

        self.run(lambda: self._faults.append(next_one))

    def heal(self) -> None:
        """No faults any more: what was held back goes on."""

        def do() -> None:
            self._refusing = self._deaf = False
            self._faults.clear()
            if self._fillers:
                self._listener.listen(BACKLOG)
            for link in self.alive:
                link.heal()

        self.run(do)

    def forget(self) -> None:
        """Forget the connections that have ended: an hour of them would be too many."""

        # By the thread that adds to them: it would lose one that came meanwhile, and never serve it.
        def do() -> None:
            self.links[:] = self.alive

        self.run(do)

    def wait_for(self, condition: Callable[[], bool], timeout: float = EVENTUALLY) -> bool:
        """Whether *condition* comes true."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def _fault(self, fault: Callable[[Link], None]) -> None:
        def do() -> None:
            self._faults.append(fault)
            for link in self.alive:
                fault(link)

        self.run(do)

    # -- the one thread ----------------------------------------------------------------------------------

    def run(self, do: Callable[[], None]) -> None:
        """Have the proxy's thread do something, and wait until it is done."""
        if threading.current_thread() is self._thread:
            do()
            return
        done = threading.Event()
        self._asked.append((do, done))
        self._bell.send(b"!")
        assert done.wait(EVENTUALLY), f"{self!r} does not answer"

    def _loop(self) -> None:
        while not self._stopped:
            now = time.monotonic()
            halves = [(half, link) for link in self.alive for half in link.halves.values()]
            reading = {h.source: (h, link) for h, link in halves if not h.held and not h.ended}
            due = [(half.due(), half, link) for half, link in halves]
            writing = {half.target: (half, link) for when, half, link in due if when <= now}
            nap = min((when - now for when, _, _ in due if now < when < math.inf), default=None)
            waiting = [self._ear, *reading]
            if not self._deaf:
                waiting.append(self._listener)
            readable, writable, _ = select.select(waiting, [*writing], [], nap)
            # By membership, for eventlet may name a socket that was asked about in the other direction.
            for sock in writable:
                if sock in writing:
                    self._step(*writing[sock], Half.write)
            for sock in readable:
                if sock is self._listener:
                    self._accept()
                elif sock in reading:
                    self._step(*reading[sock], Half.read)
            if self._ear in readable:
                self._ear.recv(CHUNK)
                while self._asked:
                    do, done = self._asked.popleft()
                    with contextlib.suppress(OSError):
                        do()
                    done.set()

    def _step(self, half: Half, link: Link, step: Callable[[Half], None]) -> None:
        try:
            step(half)
        except BlockingIOError:
            pass
        except OSError:
            link.close()
        else:
            link.strike()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, address = self._listener.accept()
            if any(address == filler.getsockname() for filler in self._fillers):
                client.close()
                return
            self._take(client)
            self.accepted += 1

    def _turn_deaf(self) -> None:
        self._deaf = True
        # The shortest queue there is, filled up: the kernel then drops whatever comes.
        self._listener.listen(0)
        for _ in range(BACKLOG):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self._listener.getsockname())
            self._fillers.append(filler)
            if not select.select([], [filler], [], LOCALLY)[1]:
                break

    def _take(self, client: socket.socket) -> None:
        if self._target is None:
            self._mutes.append(client)
            return
        server = None
        if not self._refusing:
            with contextlib.suppress(OSError):
                server = socket.create_connection(self._target, timeout=EVENTUALLY)
        if server is None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
            client.close()
            return
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(self, client, server)
        self.links.append(link)
        for fault in list(self._faults):
            fault(link)
