"""Opening one AMQP connection, with its first channel, at one of the addresses of its host."""

from __future__ import annotations

import time
from typing import Any

from .. import tls
from ..addresses import CONNECT_TIMEOUT, LOCAL_ADDRESS, LOCAL_NAME, SHORTEST, Addresses
from ..failed_openings import WrongProtocol, may_pass
from .first_channel import FirstChannel
from .handshake import Handshake

__all__ = ["open_connection"]


def open_connection(connection: Any) -> tuple[Any, Any]:
    """Connect within the time-out of *connection*, and check the host's name where TLS is used.

    :param connection: a pooled connection of kombu's.
    :returns: the transport's connection, and its first channel, ``None`` unless *connection* is to keep that.
    :raises Exception: the transport's; no descriptor is left open.
    """
    transport = connection.transport
    given, host = connection.ssl, connection.hostname
    if connection.by_name and host == LOCAL_ADDRESS:
        host = LOCAL_NAME
    connection.ssl = tls.for_host(given, host)
    checks_name = tls.checks_name(given)
    try:
        addresses = Addresses(_log_in(connection))
        while True:
            first = FirstChannel(transport, kept=connection.with_channel)
            handshake = Handshake(
                addresses, first.ask, checks_name=checks_name, dial=transport.dial
            )
            try:
                with handshake:
                    established = transport.open(handshake)
                    handshake.opened()
                    channel = first.wait(established)
            except Exception as error:
                tls.forget_errors()
                another = addresses.failed(handshake.reason(error))
                # A broker that refuses us would do so at its other addresses too. What is no broker is not asked.
                no_broker = isinstance(error, WrongProtocol) or tls.speaks_none(error)
                if not (another and (no_broker or may_pass(error))):
                    if addresses.tried is not None:
                        error.add_note(addresses.tried)
                    raise
            else:
                break
    finally:
        # What a pool is known by.
        connection.ssl = given
        if host == LOCAL_NAME:
            connection.by_name = True
    return established, channel


def _log_in(connection: Any) -> float | None:
    """Call ``CREDENTIALS`` if there are any; return the seconds that are left for the connection."""
    if connection.credentials is None:
        return connection.at_most  # type: ignore[no-any-return]  # a number or None
    seconds = connection.connect_timeout or CONNECT_TIMEOUT
    ends = time.monotonic() + min(seconds, connection.at_most or seconds)
    login = connection.credentials.ask(ends - time.monotonic(), needs_user=True)
    connection.log_in(login)
    return max(SHORTEST, ends - time.monotonic())
