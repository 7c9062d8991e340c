"""Where the frames of AMQP begin in a stream."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from amqp import spec

__all__ = ["KINDS", "METHODS", "Frame", "Frames"]

#: Kinds of frames, as they stand in a frame's first byte.
KINDS = {"method": 1, "header": 2, "body": 3, "heartbeat": 8}
#: Class and number of each method, by names like "basic.get-ok".
METHODS: dict[str, tuple[int, int]] = {
    f"{family.__name__}.{re.sub('(?<!^)(?=[A-Z])', '-', name)}".lower(): number
    for family in vars(spec).values()
    if isinstance(family, type)
    for name, number in vars(family).items()
    if isinstance(number, tuple) and len(number) == 2
}
#: What a client says first.
PROTOCOL_HEADER = 8
#: Kind, channel and size; then, in a method's frame, its class and number.
HEAD = struct.Struct(">BHI")
METHOD = struct.Struct(">HH")
#: The octet that ends a frame.
END = 1


@dataclass(frozen=True)
class Frame:
    """A place inside a frame of one direction.

    `which` is its number, counted from 0; or the first one to come of a kind ("header") or method ("basic.publish").
    `at` is how many of its bytes are before the place; below 0, it is counted from the frame's end.
    """

    which: int | str
    at: int = 0


@dataclass(frozen=True)
class Seen:
    """A frame whose head has passed by."""

    start: int
    size: int
    kind: int
    method: tuple[int, int] | None

    def place(self, at: int) -> int:
        """`at` as an offset in the stream."""
        return self.start + at + (self.size if at < 0 else 0)


class Frames:
    """The frames of one direction, as far as they are known."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        #: Where the first frame begins that is not known yet.
        self.known = 0

    def look(self, stream: bytearray) -> None:
        """Find what has come since; a stream that is not AMQP gives nonsense, and no error."""
        while (found := self._next(stream)) is not None:
            self.seen.append(found)
            self.known = found.start + found.size

    def _next(self, stream: bytearray) -> Seen | None:
        if self.known == 0 and stream[:1] == b"A":
            self.known = PROTOCOL_HEADER
        head = bytes(stream[self.known : self.known + HEAD.size + METHOD.size])
        if len(head) < HEAD.size:
            return None
        kind, _, size = HEAD.unpack_from(head)
        method = None
        if kind == KINDS["method"] and size >= METHOD.size:
            if len(head) < HEAD.size + METHOD.size:
                return None
            method = METHOD.unpack_from(head, HEAD.size)
        return Seen(self.known, HEAD.size + size + END, kind, method)

    def find(self, frame: Frame, after: int) -> int | None:
        """The place of `frame` in the stream, if it is known; those that are named begin no sooner than `after`."""
        if isinstance(frame.which, int):
            if frame.which < len(self.seen):
                return self.seen[frame.which].place(frame.at)
            return None
        for seen in self.seen:
            named = (
                seen.kind == KINDS[frame.which]
                if frame.which in KINDS
                else seen.method == METHODS[frame.which]
            )
            if named and seen.start >= after:
                return seen.place(frame.at)
        return None
