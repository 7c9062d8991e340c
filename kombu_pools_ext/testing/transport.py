"""Kombu's transport ``test://``: that of py-amqp, connected to a broker in memory.

Below kombu all is py-amqp's own code, and ours: its frames, its channels, its errors. Only the socket is another one.
"""

from __future__ import annotations

from typing import Any

from amqp import transport as amqp_transport
from kombu.transport import pyamqp

from ..broker.amqp.connection import Transport as AmqpTransport
from .brokers import brokers

__all__ = ["DEFAULT", "Transport"]

#: The broker of a URL that names none.
DEFAULT = "default"


def _dial(host: str, port: int) -> Any:
    """Return a socket that is connected to the broker called *host*."""
    return brokers.connect(host)


class _Socket(amqp_transport.TCPTransport):
    """Py-amqp's transport, for connections that kombu makes without a pool."""

    def _connect(self, host: str, port: int, timeout: float | None) -> None:
        self.sock = _dial(host, port)


class _Connection(pyamqp.Connection):
    """Py-amqp's connection, as kombu makes it without a pool."""

    def Transport(  # noqa: N802  # py-amqp's name
        self,
        host: str,
        connect_timeout: float | None,
        ssl: Any = False,
        *times: Any,
        **options: Any,
    ) -> Any:
        """Return a new transport, not connected. There is no TLS within a process."""
        return _Socket(host, connect_timeout, *times, **options)


class Transport(AmqpTransport):
    """Kombu's transport for a broker in memory; the host of the URL is the broker's name."""

    dial = staticmethod(_dial)

    def Connection(self, **options: Any) -> Any:  # type: ignore[override, unused-ignore]  # noqa: N802  # kombu's name
        """Return a new connection, not connected."""
        return _Connection(**options) if self._handshake is None else super().Connection(**options)

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return {**super().default_connection_params, "hostname": DEFAULT}
