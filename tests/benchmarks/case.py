"""What a case is, what its contenders are given, and the register of all cases."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import kombu

from .measure import Round

__all__ = [
    "BODY",
    "CASES",
    "OURS",
    "Case",
    "Contender",
    "Missing",
    "Setting",
    "chosen",
    "peer",
    "register",
]

#: What our own contender is called, in every case.
OURS = "ours"
#: The message of every case: a small order.
BODY = {
    "id": 471_100,
    "customer": "Ada Lovelace",
    "lines": [{"sku": "A-1", "count": 2, "price": "12.50"}, {"sku": "B-7", "count": 1, "price": "3.20"}],
    "placed": "2026-01-31T12:00:00+00:00",
}  # fmt: skip


class Missing(Exception):
    """A contender's package is not installed; the message names it."""


def peer(module: str) -> Any:
    """The module of a contender that this environment may lack.

    :raises Missing: if it does.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise Missing(f"{package} is not installed ({error})") from None


@dataclass(frozen=True)
class Setting:
    """Where a case takes place: what `Places` says of it, and how long a round is."""

    url: str
    #: The certificate of who signed the broker's; ``None`` without TLS.
    ca: str | None = None
    #: Seconds that a contender's round lasts, about.
    seconds: float = 0.05
    #: Seconds for what is watched rather than timed: an idle process, threads that take turns.
    watch: float = 3.0
    queue: str = "bench"

    @property
    def load(self) -> float:
        """Seconds for which many publish at once."""
        return self.watch * 2 / 3

    @property
    def ssl(self) -> dict[str, Any] | None:
        """What kombu and our settings take as `ssl`."""
        if self.ca is None:
            return None
        return {"ssl_ca_certs" if self.url.startswith("redis") else "ca_certs": self.ca}

    def connection(self, *, confirm: bool = False, **kwargs: Any) -> kombu.Connection:
        """A connection of kombu's, as its users make it."""
        options = {"confirm_publish": True} if confirm else {}
        if self.ca is not None:
            kwargs["ssl"] = self.ssl
        return kombu.Connection(self.url, transport_options=options, **kwargs)

    def settings(self, *, confirm: bool, **more: Any) -> dict[str, Any]:
        """An alias of ours."""
        own: dict[str, Any] = {"URL": self.url, "CONFIRM": confirm, **more}
        return own if self.ca is None else own | {"SSL": self.ssl}


#: Sets itself up in a setting, gives its round, and leaves nothing behind.
Contender = Callable[[Setting], AbstractContextManager[Round]]


@dataclass(frozen=True)
class Case:
    """One thing to do, at one place.

    :param name: dotted: what is done, how, and where.
    :param place: of `Places`.
    :param figures: the unit of each figure; the first one is the case's own.
    :param fresh: each round wants a process of its own.
    :param rounds: of a hundred that are asked for, how many it plays at most.
    :param bare: the contender that does only what all do. What the ``processor`` time of another is above
        this one's, in the same round, is the other's figure ``above``.
    """

    name: str
    title: str
    place: str
    contenders: Mapping[str, Contender]
    figures: Mapping[str, str] = field(default_factory=lambda: {"time": "µs"})
    fresh: bool = False
    rounds: int = 100
    bare: str | None = None

    @property
    def figure(self) -> str:
        """The first figure."""
        return next(iter(self.figures))


#: Every case, by name, in the order in which they run.
CASES: dict[str, Case] = {}


def register(
    name: str, title: str, place: str, contenders: Mapping[str, Contender], **kwargs: Any
) -> None:
    """Add a case.

    :raises ValueError: if there is one of that name.
    """
    if name in CASES:
        raise ValueError(f"there is a case {name!r} already")
    CASES[name] = Case(name, title, place, contenders, **kwargs)


def chosen(only: str) -> list[Case]:
    """The cases whose name has one of these words in it; all of them for no word.

    :param only: words with commas or blanks between them.
    :raises ValueError: for a word that no case has.
    """
    from . import all_cases  # noqa: F401  # fills the register

    words = only.replace(",", " ").split()
    for word in words:
        if not any(word in name for name in CASES):
            raise ValueError(f"no case has {word!r} in its name: {', '.join(CASES)}")
    return [
        case for name, case in CASES.items() if not words or any(word in name for word in words)
    ]
