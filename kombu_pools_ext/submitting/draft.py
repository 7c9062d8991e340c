"""A submitted message, serialized for the road that it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..broker.message_id import new_message_id
from ..prepared import Destination, PreparedMessage, calling_line, kept, prepare_checked
from ..publisher import Outgoing, SharedRoad

if TYPE_CHECKING:
    from kombu.entity import Exchange

    from ..aliases import Pools

__all__ = ["Draft"]


class Draft:
    """A message whose arguments were checked. It is serialized once: for the shared connection, or for a lease.

    :param pools: the pools that publish it.
    :param using: the alias.
    :param exchange: its name, or an ``Exchange``; ``None`` is the default exchange.
    :param options: the further keywords of a publish.
    :param awaited: whether a coroutine waits for it, whose traceback says which line it is from.
    """

    __slots__ = (
        *("_arguments", "_body", "_outgoing", "_pools", "_prepared"),
        *("destination", "exchange", "message_id"),
    )

    def __init__(
        self,
        pools: Pools,
        using: str,
        body: Any,
        routing_key: str,
        exchange: str | Exchange | None,
        options: dict[str, Any],
        *,
        awaited: bool,
    ) -> None:
        self._pools = pools
        self._body = body
        self._arguments = kept(options)
        if self._arguments.get("message_id") is None:
            self._arguments["message_id"] = new_message_id()
        self.message_id: str = self._arguments["message_id"]
        self.exchange = exchange
        name = exchange if isinstance(exchange, str) else "" if exchange is None else exchange.name
        line = None if awaited else calling_line()
        self.destination = Destination(using, name, routing_key, line)
        self._outgoing: Outgoing | None = None
        self._prepared: PreparedMessage | None = None

    def outgoing(self, road: SharedRoad, seconds: float | None) -> Outgoing | None:
        """Return the message for the shared connection, serialized now if it was not; ``None`` if it needs a lease.

        :param seconds: until it has to be written; ``None`` means without end.
        :raises EncodeError: if the body cannot be serialized.
        :raises ValueError: for headers that a frame has no room for.
        """
        if self._prepared is None and self._outgoing is None:
            key = self.destination.routing_key
            arguments = self._arguments
            outgoing = road.prepare(self._body, key, self.exchange, arguments, seconds, waits=False)
            if outgoing is not None:
                self._outgoing, self._body = outgoing, None
            return outgoing
        message = self.prepared()
        arguments = dict(message.arguments)
        key, exchange = arguments.pop("routing_key"), arguments.pop("exchange")
        return road.prepare(message.body, key, exchange, arguments, seconds, waits=False)

    def prepared(self) -> PreparedMessage:
        """Return the message for a lease, serialized now if it was not.

        :raises EncodeError: if the body cannot be serialized.
        """
        if self._prepared is None:
            using, _, key, line = self.destination
            if self._outgoing is None:
                self._prepared = prepare_checked(
                    *(self._pools, using, self._body, key, self.exchange, self._arguments, line)
                )
            else:
                arguments, content = self._arguments, self._outgoing.content
                arguments.pop("serializer", None)
                arguments.update(
                    exchange=self._outgoing.exchange,
                    routing_key=key,
                    headers=content.headers,
                    delivery_mode=content.delivery_mode,
                    content_type=content.content_type,
                    content_encoding=content.content_encoding,
                    compression="",
                )
                self._prepared = PreparedMessage(using, content.octets, arguments, line)
            self._body = self._outgoing = None
        return self._prepared
