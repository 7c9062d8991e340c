"""One connection through the proxy, and what may happen to it on the way."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from .frames import Frame, Frames
from .script import BOTH, TO_CLIENT, TO_SERVER, Step, read

__all__ = ["BOTH", "CHUNK", "LINGER_NOT", "TO_CLIENT", "TO_SERVER", "Half", "Link"]

CHUNK = 65536
#: An ordinary close sends a FIN; one that lingers for 0 s sends a RST.
LINGER_NOT = struct.pack("ii", 1, 0)


class Runs(Protocol):
    """Has the thread of the proxy do something."""

    def run(self, do: Callable[[], None]) -> None: ...


class _Armed:
    """A step that waits for its place in the stream."""

    def __init__(self, step: Step, half: Half) -> None:
        self.step = step
        self._after = half.position
        #: Its place as an offset in the stream, once that is known.
        self.at = step.place if isinstance(step.place, int) else None

    def look(self, frames: Frames) -> None:
        if self.at is None and isinstance(self.step.place, Frame):
            self.at = frames.find(self.step.place, self._after)


class Half:
    """What goes one way."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        #: All that came in, passed on or not.
        self.received = bytearray()
        self.frames = Frames()
        #: How much of it is through: passed on, or swallowed.
        self.position = 0
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.not_before = 0.0
        self.ended = self.shut = False
        self.heal()

    def heal(self) -> None:
        #: While held, nothing is read: the sender's buffers fill up, as with a peer that hangs.
        self.held = False
        #: Nothing arrives any more, and the sender does not notice.
        self.swallows = False
        #: Seconds by which each chunk is late.
        self.delay = 0.0
        #: Seconds from one byte to the next; None: all at once.
        self.pause: float | None = None
        #: Bits to flip, by their byte's offset.
        self.masks: dict[int, int] = {}
        self.armed: list[_Armed] = []

    def due(self) -> float:
        """When there is something to write: seconds of the monotonic clock."""
        if not self.waiting or self.held:
            return math.inf
        when, data = self.waiting[0]
        return max(when, self.not_before) if not data or self._room() > 0 else math.inf

    def read(self) -> None:
        data = self.source.recv(CHUNK)
        self.received += data
        self.ended = not data
        if self.armed:
            self.look()
        self.waiting.append((time.monotonic() + self.delay, data))

    def look(self) -> None:
        """Find the places of what is armed."""
        self.frames.look(self.received)
        for one in self.armed:
            one.look(self.frames)

    def write(self) -> None:
        when, data = self.waiting[0]
        if not data:
            self.waiting.popleft()
            if self.swallows:
                return
            raise ConnectionResetError("the other side has ended")
        room = self._room()
        piece = data if room >= len(data) else data[: int(room)]
        if self.pause is not None:
            piece = piece[:1]
            self.not_before = time.monotonic() + self.pause
        lost = self.swallows or self.shut
        sent = len(piece) if lost else self.target.send(self._garbled(piece))
        self.waiting.popleft()
        if rest := data[sent:]:
            self.waiting.appendleft((when, rest))
        self.position += sent

    def end(self) -> None:
        """Tell the target that no more will come, and listen to the source as before."""
        self.shut = True
        self.target.shutdown(socket.SHUT_WR)

    def reached(self) -> Step | None:
        """The next step whose place has been reached; it is armed no more."""
        ready = [one for one in self.armed if one.at is not None and one.at <= self.position]
        if not ready:
            return None
        first = min(ready, key=lambda one: one.at or 0)
        self.armed.remove(first)
        if first.step.action == "garble":
            assert first.at is not None
            self.masks[first.at] = self.masks.get(first.at, 0) ^ first.step.argument
        return first.step

    def _room(self) -> float:
        """How many bytes may pass until something happens, or until it is clear where it will."""
        ends = [one.at for one in self.armed if one.at is not None]
        if len(ends) < len(self.armed) and not self.ended:
            ends.append(self.frames.known)
        return min(ends, default=math.inf) - self.position

    def _garbled(self, piece: bytes) -> bytes:
        garbled = bytearray(piece)
        for offset, mask in self.masks.items():
            if 0 <= offset - self.position < len(piece):
                garbled[offset - self.position] ^= mask
        return bytes(garbled)


class Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Runs, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self.client, self.server = client, server
        #: The port from which the server sees it come.
        self.port = int(server.getsockname()[1])
        self.halves = {TO_SERVER: Half(client, server), TO_CLIENT: Half(server, client)}
        self.closed = False

    def __repr__(self) -> str:
        return f"<Link {'closed' if self.closed else 'open'}>"

    def sent(self, direction: str) -> bytes:
        """All that one side has said so far, passed on or not."""
        return bytes(self.halves[direction].received)

    def hold(self, *directions: str) -> None:
        """Keep back what goes one way, or both."""
        self._each(directions, lambda half: setattr(half, "held", True))

    def silence(self) -> None:
        """The peer is dead: nothing passes, and nothing is closed."""
        self.hold()

    def drop(self, *directions: str) -> None:
        """Swallow what goes one way, or both; ends as well."""
        self._each(directions, lambda half: setattr(half, "swallows", True))

    def delay(self, seconds: float, *directions: str) -> None:
        """Pass on what goes one way, or both, so much later."""
        self._each(directions, lambda half: setattr(half, "delay", seconds))

    def drip(self, seconds: float, *directions: str) -> None:
        """Pass on what goes one way, or both, byte by byte, with a pause after each."""
        self._each(directions, lambda half: setattr(half, "pause", seconds))

    def half_close(self, *directions: str) -> None:
        """End one way with a FIN: what still comes from there is lost, while the other way goes on."""
        self._each(directions, Half.end)

    def heal(self) -> None:
        """No faults any more: what was held back goes on. What was closed or lost stays so."""
        self._each(BOTH, Half.heal)

    def play(self, script: Any) -> None:
        """Do each step of a script when its place in the stream is reached; at once, if it has been passed.

        :raises BadScript: with everything that is wrong with it.
        """
        self.arm(read(script))

    def arm(self, steps: list[Step]) -> None:
        """:meth:`play` a script that has been read."""

        def do() -> None:
            for step in steps:
                half = self.halves[step.direction]
                half.armed.append(_Armed(step, half))
            for half in self.halves.values():
                half.look()
            self.strike()

        self._proxy.run(do)

    def strike(self) -> None:
        """Do the steps whose place has been reached; for the proxy's own thread."""
        for half in self.halves.values():
            while not self.closed and (step := half.reached()) is not None:
                self._do(step)

    def say(self, data: bytes) -> None:
        """Say something to the client in the server's name."""
        self._proxy.run(lambda: self.client.sendall(data))

    def cut(self, *, rst: bool = False) -> None:
        """Close both sides, with a FIN or with a RST."""
        self._proxy.run(lambda: self.close(rst=rst))

    def reset(self) -> None:
        """Close both sides with a RST."""
        self.cut(rst=True)

    def close(self, *, rst: bool = False) -> None:
        """:meth:`cut`, for the proxy's own thread."""
        self.closed = True
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                if rst:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
                else:
                    # Before close(), which would send a RST where bytes lie unread.
                    sock.shutdown(socket.SHUT_WR)
                    with contextlib.suppress(BlockingIOError):
                        while sock.recv(CHUNK):
                            pass
            sock.close()

    def _each(self, directions: tuple[str, ...], change: Callable[[Half], None]) -> None:
        def do() -> None:
            for name in directions or BOTH:
                if not self.closed:
                    change(self.halves[name])

        self._proxy.run(do)

    def _do(self, step: Step) -> None:
        if step.action == "garble":
            return  # done on the way
        arguments = () if step.argument is None else (step.argument,)
        whole = step.action in ("cut", "reset", "silence", "heal")
        with contextlib.suppress(OSError):
            method = getattr(self, step.action.replace("-", "_"))
            method(*arguments, *(() if whole else (step.direction,)))
