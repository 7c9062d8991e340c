"""How the broker refuses: it closes the channel, or the connection, with a code and RabbitMQ's words."""

from __future__ import annotations

__all__ = ["Refusal", "not_modelled"]

#: The names that RabbitMQ's reply texts begin with, by code.
_NAMES = {
    320: "CONNECTION_FORCED",
    403: "ACCESS_REFUSED",
    404: "NOT_FOUND",
    405: "RESOURCE_LOCKED",
    406: "PRECONDITION_FAILED",
    501: "FRAME_ERROR",
    502: "SYNTAX_ERROR",
    503: "COMMAND_INVALID",
    504: "CHANNEL_ERROR",
    505: "UNEXPECTED_FRAME",
    530: "NOT_ALLOWED",
    540: "NOT_IMPLEMENTED",
}
#: The codes that end the connection; the others end the channel.
_HARD = frozenset({320, 501, 502, 503, 504, 505, 530, 540})
#: Bytes of a reply text.
_LONGEST = 255


class Refusal(Exception):
    """The broker refuses what it was asked, and closes the channel or the connection.

    :param code: AMQP's reply code.
    :param why: RabbitMQ's explanation.
    """

    def __init__(self, code: int, why: str) -> None:
        self.code = code
        text = f"{_NAMES[code]} - {why}".encode("utf-8", "surrogatepass")
        if len(text) > _LONGEST:
            text = text[: _LONGEST - 3] + b"..."
        self.text = text.decode("utf-8", "replace")
        super().__init__(self.text)

    @property
    def ends_connection(self) -> bool:
        """Whether the connection is closed, and not the channel alone."""
        return self.code in _HARD


def not_modelled(feature: str) -> NotImplementedError:
    """Return what says that the broker in memory does not know *feature*."""
    return NotImplementedError(
        f"the broker in memory does not model {feature}; test this with a RabbitMQ"
    )
