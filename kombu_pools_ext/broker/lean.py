""":meth:`kombu.Producer.publish` without what it does for nothing, for a channel with a short way onto the wire.

What it does for something is done by the same methods as there: finding the exchange's name, serializing. Whatever is
not of the usual kind is left to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .direct import Direct, direct_for
from .frames import encode_publish, encode_usual
from .serializing import serialized
from .shape import intact
from .tally import Delivery

if TYPE_CHECKING:
    from .producer_views import ProducerView

__all__ = ["KOMBUS", "publish"]

#: Returned for a message that kombu has to publish. Nothing has been done for it then.
KOMBUS = object()


def publish(
    view: ProducerView,
    item: Any,
    body: Any,
    /,
    message_id: Any = None,
    routing_key: Any = None,
    delivery_mode: Any = None,
    mandatory: Any = False,
    immediate: Any = False,
    priority: Any = 0,
    content_type: Any = None,
    content_encoding: Any = None,
    serializer: Any = None,
    headers: Any = None,
    compression: Any = None,
    exchange: Any = None,
    declare: Any = None,
    expiration: Any = None,
    timeout: float | None = None,
    confirm_timeout: float | None = None,
    **properties: Any,
) -> Any:
    """Publish *body*, within the time that is set on the connection's wire; the parameters are kombu's.

    :param view: a producer of a class that publishes as kombu's does.
    :param item: its connection.
    :returns: ``None``, or :data:`KOMBUS`.
    """
    state = view.__dict__
    channel = state.get("_channel")
    direct: Direct | None = item.direct
    if direct is None or direct.channel is not channel:
        direct = item.direct = direct_for(item, channel)
        if direct is None:
            return KOMBUS
    own = state["exchange"]
    if (
        compression
        or (compression is None and view.compression)  # type: ignore[attr-defined]  # a producer's
        or "_publish" in state
        or "_prepare" in state
        or not intact()
        or not direct.fits()
    ):
        return KOMBUS
    producer: Any = view
    if headers is None:
        headers = {}
    if routing_key is None:
        routing_key = producer.routing_key
    name, delivery_mode = producer._delivery_details(exchange or own, delivery_mode)
    if expiration is not None:
        properties["expiration"] = str(int(expiration * 1000))
    content, content_type, content_encoding = serialized(
        producer, body, serializer, content_type, content_encoding, headers
    )
    if own.name and producer.auto_declare:
        declare = [] if declare is None else declare
        if own not in declare:
            # kombu's way, which whoever passed it may know of.
            declare.append(own)
    if declare:
        for entity in declare:
            producer.maybe_declare(entity, retry=False)
        # What is said of an interruption from here on is about the message.
        item.wire.spoken = False
        declared = direct.fits()
    else:
        declared = True
    octets = _octets(content, content_encoding)
    frames = None
    if octets is not None and declared:
        if headers or properties:
            frames = encode_publish(
                direct.channel.channel_id, direct.frame_max, name, routing_key, mandatory, immediate,
                octets, message_id, headers,
                {
                    "content_type": content_type,
                    "content_encoding": content_encoding,
                    "priority": priority,
                    "delivery_mode": delivery_mode,
                    **properties,
                },
            )  # fmt: skip
        else:
            frames = encode_usual(
                direct.channel.channel_id, direct.frame_max, name, routing_key, mandatory, immediate,
                octets, message_id, content_type, content_encoding, priority, delivery_mode,
            )  # fmt: skip
    confirms = direct.confirms
    if frames is None or (confirms is None and not direct.heed()):
        # The second half of kombu's: it must not be serialized twice.
        properties |= {"delivery_mode": delivery_mode, "message_id": message_id}
        producer._publish(
            *(content, priority, content_type, content_encoding, headers, properties),
            *(routing_key, mandatory, immediate, name, [], timeout, confirm_timeout),
        )
        return None
    if confirms is not None:
        confirms.send(
            Delivery(message_id, name, routing_key, mandatory or immediate, len(frames)),
            direct.gather if confirms.pipelined else direct.put,
            frames,
        )
        return None
    direct.write(frames)
    return None


def _octets(content: Any, encoding: Any) -> bytes | None:
    """As py-amqp encodes it; ``None`` if it has to say what is wrong."""
    if type(content) is bytes:
        return content
    if type(content) is str and type(encoding) is str:
        try:
            return content.encode(encoding)
        except (LookupError, ValueError):
            return None
    return None
