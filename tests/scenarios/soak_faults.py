"""What strikes in a soak: each kind once in a random order, then each again, all drawn from one seed.

Three in ten have another one beside them, of another group: while a server is away, a connection is cut, for example.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.proxy import TO_CLIENT, TO_SERVER

if TYPE_CHECKING:
    from tests.proxy.link import Link

    from .soak import Soak

__all__ = ["GROUP_OF", "KINDS", "Strike", "do", "schedule"]

DIRECTIONS = (TO_SERVER, TO_CLIENT)

#: Seconds without a fault before the next, at most: often too few for everybody to have recovered from the last one.
LONGEST_GAP = 4.0
#: Seconds that a fault lasts at most, if it can be taken back.
LONGEST_FAULT = 5.0
#: How many have another one beside them.
BESIDE = 0.3


@dataclass(frozen=True)
class Strike:
    """One fault, with all that chance has to say about it."""

    kind: str
    #: Seconds after the fault before.
    gap: float
    #: Seconds that it lasts, if it can be taken back.
    lasts: float
    #: Which server, where there is a choice.
    server: str
    #: How many of the connections that exist are struck, from 0 to 1.
    share: float
    #: For every other choice.
    draw: int
    #: What strikes at the same time.
    beside: Strike | None = None

    def __str__(self) -> str:
        told = f"{self.kind} ({self.server}, {self.lasts:.1f} s, {self.share:.0%}, {self.draw})"
        return told if self.beside is None else f"{told}, and {self.beside}"

    def some(self, links: list[Link]) -> list[Link]:
        """Those of *links* that are struck."""
        dice = random.Random(self.draw)
        return [link for link in links if dice.random() < self.share]


def schedule(seed: int) -> Iterator[Strike]:
    """Without an end, and the same for the same seed."""
    dice = random.Random(seed)
    while True:
        for kind in dice.sample(list(KINDS), len(KINDS)):
            others = [other for other in KINDS if GROUP_OF[other] != GROUP_OF[kind]]
            beside = drawn(dice, dice.choice(others)) if dice.random() < BESIDE else None
            yield replace(drawn(dice, kind), beside=beside)


def drawn(dice: random.Random, kind: str) -> Strike:
    """A fault of that kind."""
    return Strike(
        kind=kind,
        gap=round(dice.uniform(0.2, LONGEST_GAP), 2),
        lasts=round(dice.uniform(0.5, LONGEST_FAULT), 2),
        server=dice.choice(("rabbitmq", "rabbitmq", "redis")),
        share=dice.choice((0.3, 0.6, 1.0)),
        draw=dice.randrange(2**32),
    )


def do(soak: Soak, strike: Strike) -> None:
    """Let it strike, and return when it is over."""
    with ThreadPoolExecutor(1) as second:
        beside = strike.beside
        other = second.submit(KINDS[beside.kind], soak, beside) if beside is not None else None
        KINDS[strike.kind](soak, strike)
        if other is not None:
            other.result()


# -- the servers -------------------------------------------------------------------------------------------------------


def restarted(soak: Soak, strike: Strike) -> None:
    soak.rabbitmq.restart()


def killed(soak: Soak, strike: Strike) -> None:
    soak.rabbitmq.kill()
    soak.outage(strike.lasts)
    soak.rabbitmq.start()


def frozen(soak: Soak, strike: Strike) -> None:
    server = soak.servers[strike.server]
    server.freeze()
    soak.outage(strike.lasts)
    server.thaw()


def closed_by_the_operator(soak: Soak, strike: Strike) -> None:
    soak.rabbitmq.close_connections("maintenance")


def memory_alarm(soak: Soak, strike: Strike) -> None:
    with soak.rabbitmq.memory_alarm():
        soak.outage(strike.lasts)


def redis_restarted(soak: Soak, strike: Strike) -> None:
    soak.redis.restart()


def redis_killed(soak: Soak, strike: Strike) -> None:
    soak.redis.kill()
    soak.outage(strike.lasts)
    soak.redis.start()


# -- the network -------------------------------------------------------------------------------------------------------


def cut(soak: Soak, strike: Strike) -> None:
    for link in strike.some(soak.proxies[strike.server].alive):
        link.cut(rst=bool(strike.draw % 2))


def half_closed(soak: Soak, strike: Strike) -> None:
    for link in strike.some(soak.proxies[strike.server].alive):
        link.half_close(DIRECTIONS[strike.draw % 2])
    soak.outage(strike.lasts)


def silenced(soak: Soak, strike: Strike) -> None:
    """What exists falls silent, and then goes on where it was."""
    links = strike.some(soak.proxies[strike.server].alive)
    for link in links:
        link.hold()
    soak.outage(strike.lasts)
    for link in links:
        link.heal()


def forgotten(soak: Soak, strike: Strike) -> None:
    """What exists falls silent in one direction, for good: a firewall has forgotten it."""
    links = strike.some(soak.proxies[strike.server].alive)
    for link in links:
        link.drop(DIRECTIONS[strike.draw % 2])
    soak.outage(strike.lasts)
    # By then both peers are to have given it up. A stream with a hole in it is nothing that TCP would pass on.
    for link in links:
        link.cut()


def delayed(soak: Soak, strike: Strike) -> None:
    soak.proxies[strike.server].delay(strike.share)
    soak.outage(strike.lasts)
    soak.proxies[strike.server].heal()


def dripping(soak: Soak, strike: Strike) -> None:
    links = strike.some(soak.proxies[strike.server].alive)
    for link in links:
        link.drip(0.02)
    soak.outage(strike.lasts)
    for link in links:
        link.heal()


def black_hole(soak: Soak, strike: Strike) -> None:
    soak.proxies[strike.server].blackhole()
    soak.outage(strike.lasts)
    soak.proxies[strike.server].heal()


def refused(soak: Soak, strike: Strike) -> None:
    proxy = soak.proxies[strike.server]
    proxy.refuse()
    for link in strike.some(proxy.alive):
        link.reset()
    soak.outage(strike.lasts)
    proxy.heal()


def dns_gone(soak: Soak, strike: Strike) -> None:
    with soak.told("dns"):
        soak.outage(0.2)  # ten looks of the processes at their folder
        for link in strike.some(soak.proxies["rabbitmq"].alive):
            link.reset()
        soak.outage(strike.lasts)


# -- the processes -----------------------------------------------------------------------------------------------------


def worker_killed(soak: Soak, strike: Strike) -> None:
    """Any but the first, which is to grow old: what leaks slowly is seen in it."""
    _, *others = sorted(soak.processes)
    soak.replace(others[strike.draw % len(others)])


def suspended(soak: Soak, strike: Strike) -> None:
    soak.freeze(strike.lasts)


def wall_clock(soak: Soak, strike: Strike) -> None:
    with soak.told("clock"):
        soak.outage(strike.lasts)


Fault = Callable[["Soak", Strike], None]
#: Two of one group would get into each other's way.
GROUPS: dict[str, dict[str, Fault]] = {
    "servers": {
        "RabbitMQ restarted": restarted,
        "RabbitMQ killed": killed,
        "server frozen": frozen,
        "closed by the operator": closed_by_the_operator,
        "memory alarm": memory_alarm,
        "Redis restarted": redis_restarted,
        "Redis killed": redis_killed,
    },
    "network": {
        "connections cut": cut,
        "connections half closed": half_closed,
        "connections silent for a while": silenced,
        "connections forgotten": forgotten,
        "network slow": delayed,
        "connections drip": dripping,
        "black hole": black_hole,
        "connections refused": refused,
        "DNS gone": dns_gone,
    },
    "processes": {
        "worker killed": worker_killed,
        "workers suspended": suspended,
        "wall clock moved": wall_clock,
    },
}
KINDS: dict[str, Fault] = {
    kind: fault for group in GROUPS.values() for kind, fault in group.items()
}
GROUP_OF = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
