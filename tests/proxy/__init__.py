"""A TCP proxy that a test scripts: it breaks in every way what passes between a client and a broker, and counts it.

::

    with Proxy("127.0.0.1", 5672) as proxy:
        url = f"amqp://guest:guest@{proxy.address}//"
        ...
        proxy.cut()               # every connection, with a FIN; reset() with a RST
        proxy.hold(TO_CLIENT)     # what the server says stays here, until heal()
        proxy.drop(TO_SERVER)     # what the client says gets lost, and nothing is closed
        proxy.half_close(TO_CLIENT)  # the client sees an end, and is still heard
        proxy.drip(0.01)          # byte by byte
        proxy.delay(0.05)         # each way; round_trip(0.1) both together
        proxy.silence()           # a dead peer: nothing passes any more, and nothing is closed
        proxy.blackhole()         # the same, and who comes is not even accepted

Faults apply to the connections that exist and to those that come, until `Proxy.heal`; each `Link` has the same methods
for one connection alone. One thread does all the work, so a method has taken effect when it returns.

A script strikes at a place in the stream, counted from the connection's first byte, or in a frame of AMQP::

    proxy.play([
        (TO_CLIENT, 120, "cut"),                              # when 120 bytes have passed
        (TO_SERVER, Frame("basic.publish", 9), "reset"),      # inside the first such frame, after 9 of its bytes
        (TO_SERVER, Frame(3, -1), "garble", 0xFF),            # the last byte of the 4th frame
        (TO_CLIENT, 0, "drip", 0.01),
    ], coming=1)                                              # only the next connection

`script.ACTIONS` has them all. A script with mistakes is refused as a whole, and the error lists every one.
"""

from __future__ import annotations

from .broker import FakeBroker
from .frames import Frame
from .link import BOTH, TO_CLIENT, TO_SERVER, Link
from .peer import Peer
from .script import BadScript
from .server import Proxy

__all__ = [
    "BOTH",
    "TO_CLIENT",
    "TO_SERVER",
    "BadScript",
    "FakeBroker",
    "Frame",
    "Link",
    "Peer",
    "Proxy",
]
