"""What a case is given, and who cannot take part in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from tests.benchmarks.case import Missing
from tests.benchmarks.report import Played

from .place import Place
from .servers import Servers
from .sizes import Sizes

__all__ = ["WHERE", "Bench", "leaving_out"]

T = TypeVar("T")

#: What each case has for a place.
WHERE = "RabbitMQ and PostgreSQL, loopback"


@dataclass
class Bench:
    """A run's servers, and how much it does; Django is set up for them."""

    servers: Servers
    sizes: Sizes
    #: Gets a line about what is being done.
    note: Callable[[str], object] = field(default=lambda line: None)

    @property
    def place(self) -> Place:
        """Where the messages are written, and where they go."""
        return self.servers.place


@contextmanager
def leaving_out(played: Played, contender: str) -> Iterator[None]:
    """Leave *contender* out of *played*, with the reason, if the block says that it is missing, or fails."""
    try:
        yield
    except Missing as missing:
        played.left_out[contender] = str(missing)
    except Exception as error:
        played.left_out[contender] = f"failed: {type(error).__name__}: {error}"
