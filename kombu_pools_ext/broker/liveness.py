"""Is this connection still good? And how to leave one alone that belongs to another process.

The check costs about a microsecond on a healthy AMQP socket: one ``poll(0)``. Readable does not mean dead (a
heartbeat may have come, or a TLS session ticket): what is there is read, and what raised is the answer.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from typing import TYPE_CHECKING, Any

import kombu
from amqp import exceptions as amqp_errors

from . import redis_sockets
from .own_errors import raised_by_carrier
from .wire import Wire

if TYPE_CHECKING:
    from .driver import OpenConnection

__all__ = ["abandon", "check", "is_amqp", "keep_alive"]

logger = logging.getLogger("kombu_pools_ext")

#: Frames read at most in one check: the heartbeats of three days' lease. A peer that says more unasked is not sound.
#: What they weigh in all is bounded as well: :data:`.inbound.MOST_UNASKED`.
MOST_FRAMES = 10_000
#: Seconds that one check takes at most. What has come is read in microseconds, or a millisecond for each 100 frames;
#: only py-amqp's reopening of a channel that the broker closed waits for an answer.
LONGEST_CHECK = 0.25
#: Intervals without a word after which a peer is dead. RabbitMQ speaks twice in each; with the third of one by which
#: the next look may be late, and another by which this look was, a peer that falls silent is found out within two.
SILENT_FOR = 4 / 3
#: Looks in each interval; what is said at each keeps the broker from thinking the same of us.
LOOKS = 3
#: Intervals between two heartbeats of ours: looks come more often while a broker is blocked.
BEAT_AFTER = 1 / 4

#: Kept for ever: what a child inherited and must never finalize, for a finalizer might speak.
_abandoned: list[Any] = []


def is_amqp(connection: kombu.Connection) -> bool:
    """Whether py-amqp carries *connection*."""
    return getattr(connection.transport, "driver_name", None) == "py-amqp"


def check(connection: OpenConnection, pool: str = "", *, thorough: bool = False) -> bool:
    """Whether an established, idle *connection* may be lent. Never dials; waits for nothing but its own bound.

    :param pool: the pool's name, for the log.
    :param thorough: whether the broker has to answer: a balancer that lost its table, or a firewall, leaves sockets
        behind that look alive until something is sent.
    """
    wire = connection.wire
    established = connection._connection
    if wire is not None:
        if established is None or not wire.carries(established):
            return False
        state = wire.look()
        if state is None and not thorough:
            return True
        # Whatever was left behind, nobody else's code runs here.
        established.quiet = established.idle = True
        try:
            if state is not None and not _drain(wire, established, state, pool):
                return False
            return not thorough or _answers(connection, wire, pool)
        finally:
            established.quiet = established.idle = False
    if established is None or not connection.connected:
        return False
    # The other virtual transports have no sockets to look at.
    if connection.bounds is None:
        return True
    # A Redis that was demoted answers like any other until something is written. To connect anew takes no longer.
    return not thorough and redis_sockets.alive(connection)


def _answers(connection: OpenConnection, wire: Wire, pool: str) -> bool:
    """Whether the broker answers within :data:`LONGEST_CHECK`; asks for what the channel has anyway."""
    with wire.within(time.monotonic() + LONGEST_CHECK):
        try:
            # A channel's default: no bound on what is delivered.
            connection.default_channel.basic_qos(0, 0, False)
        except Exception as error:
            if not raised_by_carrier(error):
                raise
            logger.info("pool %r: an idle connection does not answer: %s", pool, error)
            return False
    return True


def _drain(wire: Wire, established: Any, state: str | None, pool: str) -> bool:
    """Read what came unasked, and say whether the connection has survived it."""
    deadline = time.monotonic() + LONGEST_CHECK
    with wire.within(deadline):
        for _ in range(MOST_FRAMES):
            frames = established.bytes_recv
            try:
                # Even when the peer has hung up, what it said before tells why.
                established.blocking_read(timeout=0)
            except TimeoutError as error:
                if not raised_by_carrier(error):
                    raise
                # A hang-up with nothing left to read is the end; so is a frame whose answer did not come, and a
                # peer without end. Else there is half a frame to read, or what only TLS is interested in.
                return (
                    state == "readable"
                    and established.bytes_recv == frames
                    and time.monotonic() < deadline
                )
            except amqp_errors.ChannelError as error:
                logger.warning(
                    "pool %r: an earlier lease's channel was closed by the broker: %s; its connection is "
                    "not lent again. Publish with confirms to have such an error where it arises",
                    pool,
                    error,
                )
                return False
            except amqp_errors.UnexpectedFrame as error:
                logger.info("pool %r: an idle connection is given up: %s", pool, error)
                return False
            except amqp_errors.ConnectionError as error:
                logger.info("pool %r: the broker closed an idle connection: %s", pool, error)
                return False
            except Exception as error:
                if not raised_by_carrier(error):
                    raise
                logger.debug("pool %r: an idle connection is dead: %s", pool, error)
                return False
            if not wire.carries(established):
                # Looked at before anything else, for py-amqp dials when a collected connection is asked to read.
                return False
            state = wire.look()
            if state is None:
                return True
    return False


def keep_alive(connection: OpenConnection, pool: str = "") -> bool:
    """Read what came to an idle *connection*, say a heartbeat if it is time to, and whether the peer is alive.

    :param pool: the pool's name, for the log.
    """
    if not check(connection, pool):
        return False
    wire = connection.wire
    interval = getattr(connection._connection, "heartbeat", 0)
    if wire is None or not interval:
        return True
    now, frames = time.monotonic(), connection._connection.bytes_recv
    since, known = wire.heard
    if frames != known:
        wire.heard = now, frames
    elif now - since >= interval * SILENT_FOR:
        logger.warning(
            "pool %r: nothing was heard from the broker for %.1f s, with a HEARTBEAT of %g s; the connection is "
            "closed",
            pool,
            now - since,
            interval,
        )
        return False
    if now - wire.beaten >= interval * BEAT_AFTER:
        wire.beat()
    return True


def _forget_socket(sock: socket.socket | None) -> None:
    """Close a descriptor of ours without a word on the connection that the parent goes on using."""
    if sock is None:
        return
    with contextlib.suppress(OSError):
        # close() alone would leave the object's idea of TLS alive; detached, nothing can speak any more.
        descriptor = sock.detach()
        if descriptor >= 0:
            socket.close(descriptor)


def abandon(connection: kombu.Connection) -> None:
    """In a forked child: close what *connection* inherited, without speaking and without a shutdown."""
    established = connection.__dict__.get("_connection")
    transport = connection.__dict__.get("_transport")
    _abandoned.append((established, transport))
    carrier = getattr(established, "_transport", None)
    if carrier is not None:
        _forget_socket(carrier.sock)
        carrier.sock, carrier.connected = None, False
    for channel in getattr(transport, "channels", None) or ():
        _abandon_redis(channel)
    for channel in getattr(transport, "_avail_channels", None) or ():
        _abandon_redis(channel)


def _abandon_redis(channel: Any) -> None:
    """Close the sockets of a channel of the redis transport; other channels have none of this."""
    clients = [channel.__dict__.get(name) for name in ("client", "subclient")]
    pools = {
        id(pool): pool
        for pool in (
            channel.__dict__.get("_pool"),
            *(getattr(client, "connection_pool", None) for client in clients),
        )
        if pool is not None
    }
    for pool in pools.values():
        for name in ("_available_connections", "_in_use_connections"):
            for connection in tuple(getattr(pool, name, ())):
                _forget_socket(getattr(connection, "_sock", None))
                connection._sock = None
