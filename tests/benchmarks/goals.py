"""What is to be reached, as data; and whether a run reaches it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .case import OURS
from .lease_cases import FLOOR, KOMBU, PSYCOPG, SQLALCHEMY
from .measure import Ratio, median, number, ratio
from .peers import AIO_PIKA, AMQPSTORM, PIKA
from .publish_cases import HELD, OURS_UNCONFIRMED
from .shared_cases import COROUTINES, IDLE, PROCESSES
from .thread_cases import WAITING
from .ways import AMQPSTORM_SHARED, CELERY, OVER_LEASES, OVER_ONE

__all__ = ["GOALS", "Check", "Goal", "Results", "Verdict"]

#: By case, contender and figure: the values, in the order of the rounds.
Results = Mapping[str, Mapping[str, Mapping[str, list[float]]]]


@dataclass(frozen=True)
class Verdict:
    """What a check found; ``met`` is ``None`` where something was not measured."""

    check: Check
    found: str
    met: bool | None

    @property
    def word(self) -> str:
        """As the table has it."""
        return {True: "met", False: "**not met**", None: "not measured"}[self.met]


@dataclass(frozen=True)
class Check:
    """A bound for a figure of a case, or for the ratio of two.

    :param wanted: in words, with the bound in it.
    :param mine: contender and figure.
    :param other: contender and figure of the same case that *mine* is divided by; ``None`` for the figure itself.
    :param turned: the ratio is the other's by *mine*: how many times faster mine is.
    """

    case: str
    wanted: str
    mine: tuple[str, str]
    other: tuple[str, str] | None = None
    turned: bool = False
    least: float | None = None
    most: float | None = None

    def look(self, results: Results) -> Verdict:
        """Whether *results* have it."""
        case = results.get(self.case, {})
        values = [
            case.get(contender, {}).get(figure)
            for contender, figure in filter(None, (self.mine, self.other))
        ]
        if not all(values):
            return Verdict(self, "–", None)
        mine, *other = [value for value in values if value]
        if other:
            pair = (other[0], mine) if self.turned else (mine, other[0])
            quotient: Ratio = ratio(*pair)
            value, found = quotient.value, str(quotient)
        else:
            value = median(mine)
            found = number(value)
        enough = self.least is None or value >= self.least
        return Verdict(self, found, enough and (self.most is None or value <= self.most))


@dataclass(frozen=True)
class Goal:
    """A row of the table of goals; it is met when all its checks are."""

    work: str
    against: str
    checks: tuple[Check, ...]

    def look(self, results: Results) -> Iterator[Verdict]:
        """One verdict for each check."""
        return (check.look(results) for check in self.checks)


def faster(
    case: str, than: str, least: float, *, than_figure: str = "time", me: str = OURS
) -> Check:
    """*me* takes at most the *least*-th part of the other's time."""
    wanted = "faster" if least == 1 else f"≥ {least:g} × faster"
    return Check(
        case, f"{wanted} than {than}", (me, "time"), (than, than_figure), turned=True, least=least
    )


def not_slower(case: str, than: str, figure: str = "time") -> Check:
    """A figure of ours is no longer than the other's."""
    wanted = f"not slower than {than}" if figure == "time" else f"{figure} not longer than {than}'s"
    return Check(case, wanted, (OURS, figure), (than, figure), turned=True, least=1)


def at_most(case: str, figure: str, most: float, unit: str, *, me: str = OURS) -> Check:
    """A figure of *me* has a bound."""
    return Check(case, f"≤ {most:g} {unit}", (me, figure), most=most)


#: How many times the requests of each, for a view that publishes.
VIEW = {KOMBU: 1.4, PIKA: 1.25, AMQPSTORM_SHARED: 1.4, CELERY: 2.5}


def view(case: str) -> tuple[Check, ...]:
    """What a view that publishes is to reach, on a machine of either kind."""
    requests = (
        Check(
            case,
            f"≥ {least:g} × the requests of {than}",
            (OURS, "requests"),
            (than, "requests"),
            least=least,
        )
        for than, least in VIEW.items()
    )
    processor = Check(
        case,
        f"≤ 0.3 of {KOMBU}' processor time above the bare view",
        (OURS, "above"),
        (KOMBU, "above"),
        most=0.3,
    )
    return (*requests, processor, *(not_slower(case, than, "p99") for than in VIEW))


#: How many times faster than with Celery's own pools, by the number of threads.
DELAY_GOALS = {1: 1.5, 8: 2, 32: 3}


def threads(count: int) -> tuple[Check, ...]:
    """What so many threads that publish are to reach."""
    case = f"shared.threads.{count}"
    return (
        faster(case, KOMBU, 3),
        not_slower(case, KOMBU, "p99"),
        at_most(case, "processor", 45, "µs of processor time a message"),
    )


def coroutines(count: int) -> tuple[Check, ...]:
    """What so many coroutines that publish are to reach."""
    case = f"shared.coroutines.{count}"
    return (
        faster(case, AIO_PIKA, 2.5),
        at_most(case, "processor", 45, "µs of processor time a message"),
        Check(
            case,
            "lateness of the event loop, p99, ≤ 1.3 × idle",
            (OURS, "lag"),
            (IDLE, "lag"),
            most=1.3,
        ),
    )


GOALS: tuple[Goal, ...] = (
    Goal(
        "connection acquire + release, uncontended",
        KOMBU,
        (
            faster("acquire.connection.amqp", KOMBU, 4),
            Check(
                "acquire.connection.amqp",
                "within 3 × of lock + deque",
                (OURS, "time"),
                (FLOOR, "time"),
                most=3,
            ),
        ),
    ),
    Goal("`with producer`", KOMBU, (faster("acquire.producer.amqp", KOMBU, 8),)),
    Goal(
        "bare engine",
        "psycopg_pool, SQLAlchemy",
        (faster("engine", PSYCOPG, 4), faster("engine", SQLALCHEMY, 4)),
    ),
    Goal(
        "look-up by alias or URL / by `Connection`",
        "`producers[connection]` of kombu",
        (
            faster("look-up.alias", KOMBU, 5),
            faster("look-up.url", KOMBU, 5),
            faster("look-up.connection", KOMBU, 3),
        ),
    ),
    Goal(
        "publish, one acquire a message, AMQP, unconfirmed",
        HELD,
        (faster("publish.amqp", HELD, 1.5),),
    ),
    Goal(
        "the same",
        "pika and amqpstorm held",
        (faster("publish.amqp", PIKA, 1), faster("publish.amqp", AMQPSTORM, 1)),
    ),
    Goal(
        "confirmed publish, one at a time",
        "kombu.pools with confirms, pika",
        (
            faster("confirmed.amqp", KOMBU, 1.3),
            Check(
                "confirmed.amqp",
                f"not slower than {PIKA}",
                (OURS, "time"),
                (PIKA, "time"),
                turned=True,
                least=1,
            ),
        ),
    ),
    Goal(
        "confirmed batch, AMQP",
        "kombu.pools confirmed",
        (
            faster("batch.amqp", KOMBU, 15),
            Check(
                "batch.amqp",
                "≥ 0.6 of our own unconfirmed rate",
                (OURS, "time"),
                (OURS_UNCONFIRMED, "time"),
                turned=True,
                least=0.6,
            ),
        ),
    ),
    Goal(
        "confirmed batch over a link with 10 ms of round trip",
        "kombu.pools confirmed",
        (faster("batch.amqp+10ms", KOMBU, 100),),
    ),
    Goal("batch, Redis", "kombu.pools, one acquire a message", (faster("batch.redis", KOMBU, 5),)),
    Goal(
        "40 threads on 4 connections",
        "fewest turns / most",
        (
            Check("threads.turns", "fewest / most ≥ 0.9", (OURS, "fairness"), least=0.9),
            Check("threads.turns", "p99 wait ≤ 2 × median", (OURS, "p99"), most=2),
        ),
    ),
    Goal(
        "32 threads publishing confirmed, each its own acquire",
        "kombu.pools, equal connections",
        (
            faster("threads.publish", KOMBU, 2),
            Check(
                "threads.publish",
                "p99 not worse",
                (OURS, "p99"),
                (KOMBU, "p99"),
                turned=True,
                least=1,
            ),
        ),
    ),
    Goal(
        "acquire with 1, 10, 100, 1,000 waiting threads",
        "itself",
        tuple(
            Check(
                "threads.waiting",
                f"{many:,} waiting < 2 × {WAITING[0]} waiting",
                (f"{many:,} waiting", "time"),
                (f"{WAITING[0]} waiting", "time"),
                most=2,
            )
            for many in WAITING[1:]
        ),
    ),
    Goal(
        "10,000 pools in a process (tenants)",
        "itself",
        (
            Check(
                "scale.pools",
                "look-up flat: ≤ 1.5 × that of 10 pools",
                (OURS, "look-up"),
                (OURS, "look-up of 10"),
                most=1.5,
            ),
            Check("scale.pools", "≤ 3 KB an idle pool", (OURS, "size"), most=3),
            Check("scale.pools", "one thread in all", (OURS, "threads"), most=1),
            Check("scale.pools", "maintenance < 1 % of a core", (OURS, "maintenance"), most=1),
        ),
    ),
    Goal(
        "1,000 idle connections",
        "itself",
        (
            Check(
                "scale.connections",
                "heartbeats and expiry < 2 % of a core",
                (OURS, "maintenance"),
                most=2,
            ),
        ),
    ),
    Goal(
        "after a restart, 10 stale connections",
        "one connect",
        (
            Check(
                "restart",
                "first publish ≤ 1.5 × one connect",
                (OURS, "publish"),
                (OURS, "connect"),
                most=1.5,
            ),
        ),
    ),
    Goal(
        "import of `kombu_pools_ext` over importing kombu",
        "itself",
        (Check("import", "≤ 20 ms", (OURS, "time"), most=20),),
    ),
    Goal(
        "a Django view with one confirmed publish, 32 threads",
        "kombu.pools, pika, amqpstorm, Celery",
        view("shared.view"),
    ),
    Goal("the same on a busy machine", "the same", view("shared.view.busy")),
    Goal(
        "32 and 128 threads over the shared connection, confirmed",
        "kombu.pools, 8 connections",
        (*threads(32), *threads(128)),
    ),
    Goal(
        "one thread over the shared connection, confirmed",
        "our lease for each message",
        (not_slower("shared.threads.1", OVER_LEASES),),
    ),
    Goal(
        "50 and 1,000 coroutines over the shared connection, confirmed",
        "aio-pika, one connection",
        tuple(check for count in COROUTINES for check in coroutines(count)),
    ),
    Goal(
        "32 threads over the shared connection, 10 ms of round trip",
        "kombu.pools, 8 connections",
        (faster("shared.link", KOMBU, 3.5),),
    ),
    Goal(
        f"connections at the broker, {PROCESSES} processes under load, over one connection each",
        "itself",
        (at_most("shared.processes", "connections", PROCESSES, "connections", me=OVER_ONE),),
    ),
    Goal(
        "`delay()` of a Celery task, 1, 8 and 32 threads, confirmed",
        "Celery's own pools, confirmed",
        tuple(
            faster(f"delay.threads.{count}", CELERY, least) for count, least in DELAY_GOALS.items()
        ),
    ),
)
