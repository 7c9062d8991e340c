"""Mixed load for an hour, while faults strike at random: `make soak`, or `python -m tests.scenarios.soak`.

`SOAK` is how long (60m, 90s, 2h), `SEED` what chance begins with; it is printed first. The same seed brings the same
faults in the same order, though not in the same microsecond.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import kombu

from tests.brokers import PrivateRabbitMQ, PrivateRedis
from tests.proxy import Proxy

from .plays import DurableRedis
from .publisher import HOST
from .soak_faults import do, schedule
from .stage import OURS, Call, Pace, Record, Stage, thread_of

PACE = Pace(
    before=1.0, outage=0.0, after=2.0, recovery=30.0, patience=3.0, pause=0.1, heartbeat=2, threads=4, limit=4
)  # fmt: skip
PROCESSES = 3
#: Seconds that a call may take beyond its deadline: the machine restarts brokers meanwhile, and may have other work.
MARGIN = 10.0
#: Seconds between two forks of a process.
FORK_EVERY = 15.0
#: Strikes between two calms, in which everybody has to recover.
ROUND = 5
#: Seconds until a process must be on its way, and in the end until it must have told what it holds.
WAYS = 60.0
#: KiB by which a process may have grown since it was warm, all being closed by then and what the C library keeps for
#: later given back. The heap's holes are no leak; a connection that is leaked costs 150 KiB, and each fault breaks
#: several.
GROWTH = 8 * 1024
#: Objects of Python's by which it may have grown: caches of its own and of libraries, 75 in all. A call that leaked one
#: would leave thousands, a connection dozens.
MORE_OBJECTS = 500
#: Seconds until a process is warm: all has been imported and every way to fail was taken once or twice.
WARM = 30.0
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """What `60m`, `90s`, `1.5h` or a bare number of seconds says.

    :raises ValueError: for anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if found is None or not float(found[1]):
        raise ValueError(f"SOAK is a time like 90s, 60m or 2h, not {text!r}")
    return float(found[1]) * UNITS[found[2] or "s"]


@dataclass(frozen=True)
class Held:
    """What a process held of the system, at a moment."""

    at: float
    memory: int
    descriptors: int
    threads: int
    #: Those that Python's garbage collector knows, and the broker connections among them; 0 where nobody counted.
    objects: int = 0
    connections: int = 0


@dataclass
class Health:
    """What a process has told of itself."""

    name: str
    baseline: Held | None = None
    samples: list[Held] = field(default_factory=list)
    end: Held | None = None
    #: Errors that no caller should see, by class; and troubles with the pools.
    strange: dict[str, str] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    #: The end of what it wrote to its standard output, where Python tells why it died.
    output: str = ""

    @classmethod
    def read(cls, path: Path) -> Health:
        health = cls(path.stem)
        output = path.with_suffix(".output")
        if output.exists():
            health.output = output.read_text(errors="replace")[-1500:]
        for line in path.read_text().splitlines():
            what, _, rest = line.partition(" ")
            if what == "strange":
                kind, _, trace = rest.partition(" ")
                health.strange.setdefault(kind, trace)
            elif what == "trouble":
                health.troubles.append(rest)
            else:
                at, *numbers = rest.split()
                held = Held(float(at), *map(int, numbers))
                if what == "sample":
                    health.samples.append(held)
                else:
                    setattr(health, what, held)
        return health

    @property
    def warm(self) -> Held | None:
        """The first sample of the warm process; of one that never was so old, the last."""
        if not self.samples:
            return None
        grown_up = [one for one in self.samples if one.at >= self.samples[0].at + WARM]
        return (grown_up or self.samples[-1:])[0]

    def violations(self, *, lived: bool) -> list[str]:
        """What is wrong; of a process that was killed (not *lived*), as far as it came."""
        wrong = [
            f"{self.name}: no caller should see {kind}: {trace}"
            for kind, trace in self.strange.items()
        ]
        wrong += [f"{self.name}: {trouble}" for trouble in self.troubles]
        if not lived:
            return wrong
        first, warm, end = self.baseline, self.warm, self.end
        if first is None or warm is None or end is None:
            return [*wrong, f"{self.name}: it never came to its end {self.output}".rstrip()]
        for what, before, after, more in (
            ("KiB of memory", warm.memory, end.memory, GROWTH),
            ("descriptors", first.descriptors, end.descriptors, 0),
            ("threads", first.threads, end.threads, 0),
            ("objects", first.objects, end.objects, MORE_OBJECTS),
            ("connections", first.connections, end.connections, 0),
        ):
            if after > before + more:
                wrong.append(f"{self.name}: {after} {what} when all was closed, {before} before")
        return wrong


def is_raw(message: str) -> bool:
    """Whether it was published past the pool, on a leased connection."""
    return message.rpartition(".")[2].startswith("r")


class Soak(Stage):
    """The processes of a soak, and the servers that they use through proxies."""

    script = Path(__file__).with_name("soak_worker.py")
    farewell = 2 * WAYS

    def __init__(
        self,
        seed: int,
        rabbitmq: PrivateRabbitMQ,
        redis: PrivateRedis,
        proxies: dict[str, Proxy],
        pace: Pace = PACE,
    ) -> None:
        super().__init__(
            OURS,
            "soak",
            pace,
            urls=[
                f"amqp://guest:guest@{HOST}:{proxies['rabbitmq'].port}//",
                f"redis://127.0.0.1:{proxies['redis'].port}/0",
            ],
            plain_url=lambda: rabbitmq.url,
            processes=PROCESSES,
            heartbeat=pace.heartbeat,
        )
        self.seed, self.rabbitmq, self.redis, self.proxies = seed, rabbitmq, redis, proxies
        self.servers = {"rabbitmq": rabbitmq, "redis": redis}
        self.killed: set[str] = set()
        self.stops: list[tuple[float, float]] = []
        self.messages: list[tuple[str, str | None]] = []
        self.late: list[str] = []

    def spec(self, name: str) -> dict[str, Any]:
        return super().spec(name) | {"seed": self.seed, "fork_every": FORK_EVERY}

    # -- what strikes ----------------------------------------------------------------------------------

    def replace(self, name: str) -> None:
        """SIGKILL a process, and start another one in its place."""
        self.kill(name)
        self.killed.add(name)
        base, _, number = name.partition("k")
        successor = f"{base}k{int(number or 0) + 1}"
        self.expect(successor)
        self.start(successor)

    def freeze(self, seconds: float) -> None:
        super().freeze(seconds)
        self.stops.append(self.frozen)

    def seconds(self, began: float, ended: float) -> float:
        stopped = sum(max(0.0, min(ended, end) - max(began, begin)) for begin, end in self.stops)
        return ended - began - stopped

    def calm(self) -> float:
        """Let everybody recover, and empty the queue; how long it took until all had published."""
        self.is_over()
        everybody = self.wait(lambda: self.published_since(self.healed_at), WAYS)
        took = time.monotonic() - self.healed_at
        if not everybody:
            last = self.journals.last_ok
            self.late += [
                f"{one} has not published within {took:.0f} s after the last fault"
                for one in sorted(self.threads)
                if last.get(one, 0.0) <= self.healed_at
            ]
        for proxy in self.proxies.values():
            proxy.forget()
        self.harvest()
        return took

    def harvest(self) -> None:
        """Take what is in the queue by now, while more comes in."""
        with kombu.Connection(self.plain_url()) as connection:
            channel = connection.default_channel
            channel.basic_qos(0, 500, False)
            taken: list[tuple[str, str | None]] = []

            def take(message: Any) -> None:
                if len(taken) < left:
                    taken.append((message.payload, message.properties.get("message_id")))
                    message.ack()

            queue = self.queue(channel)
            left = queue.queue_declare(passive=True).message_count
            with kombu.Consumer(channel, [queue], on_message=take):
                while len(taken) < left:
                    connection.drain_events(timeout=WAYS)
        self.messages += taken

    # -- the count -------------------------------------------------------------------------------------

    def drain(self) -> list[tuple[str, str | None]]:
        return [*self.messages, *super().drain(), *self._drain_redis(self.redis.url)]

    def count(
        self, calls: dict[str, Call], messages: list[tuple[str, str | None]], ended_at: float
    ) -> Record:
        """What is published on raw connections must be there if py-amqp said so; nothing else was promised of it."""
        record = super().count(
            {message: call for message, call in calls.items() if not is_raw(message)},
            messages,
            ended_at,
        )
        found = {body for body, _ in messages}
        raw = {message: call for message, call in calls.items() if is_raw(message)}
        ok = [message for message, call in raw.items() if call.outcome == "ok"]
        errors = Counter(
            f"raw {call.outcome}" for call in raw.values() if call.outcome not in ("ok", None)
        )
        return replace(
            record,
            attempted=len(calls),
            ok=record.ok + len(ok),
            errors=record.errors | dict(errors.most_common()),
            lost=record.lost + [message for message in ok if message not in found],
            stuck=record.stuck
            + sum(
                1
                for message, call in raw.items()
                if call.outcome is None and thread_of(message) in self.threads
            ),
        )

    def healths(self) -> list[Health]:
        return [Health.read(path) for path in sorted(self.folder.glob("*.health"))]


def violations(
    record: Record, healths: Iterable[Health], killed: set[str], pace: Pace
) -> list[str]:
    """What a soak that ended so has shown to be wrong, with examples."""
    examples = {
        "reported as published": record.lost[:5],
        "the error said no": record.denied[:5],
    }
    wrong = []
    for promise in record.broken_promises(pace, MARGIN):
        of = next((some for words, some in examples.items() if words in promise), [])
        wrong.append(f"{promise}{': ' if of else ''}{', '.join(of)}")
    for health in healths:
        wrong += health.violations(lived=health.name not in killed)
    return wrong


def report(record: Record, healths: Iterable[Health], strikes: Counter[str]) -> str:
    """The summary."""
    errors = ", ".join(f"{count} {name}" for name, count in record.errors.items()) or "none"
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(strikes.items()))
    never = "never"
    lines = [
        f"messages      {record.attempted} published, {record.ok} reported ok, {record.found} found",
        f"lost          {len(record.lost)}; {record.duplicates} copies, {record.indistinct} with other ids",
        f"errors        {errors}",
        f"faults        {sum(strikes.values())}: {faults}",
        f"longest call  {record.longest:.1f} s; {record.stuck} without an end",
        f"recovered     {never if record.recovered is None else f'{record.recovered:.1f} s'} after the last fault",
        "process        KiB: warm    last     end   descriptors   threads         objects: before, and all closed",
    ]
    for health in healths:
        first, warm, end = health.baseline, health.warm, health.end
        last = f"{warm.memory:8}{health.samples[-1].memory:8}" if warm else ""
        if first is None or end is None:
            lines.append(f"{health.name:15}{last:>19}  killed")
        else:
            lines.append(
                f"{health.name:15}{last:>19}{end.memory:8}{first.descriptors:9} {end.descriptors:4}"
                f"{first.threads:5} {end.threads:4}{first.objects:9} {end.objects:6}"
            )
    return "\n".join(lines)


def play(soak: Soak, lasts: float, tell: Any = print) -> Counter[str]:
    """Let faults strike for so many seconds; how many of each kind."""
    began = time.monotonic()
    strikes: Counter[str] = Counter()
    for turn, strike in enumerate(schedule(soak.seed), 1):
        if time.monotonic() + strike.gap - began > lasts:
            break
        time.sleep(strike.gap)
        tell(f"{time.monotonic() - began:7.1f} s  {strike}")
        do(soak, strike)
        strikes.update(one.kind for one in (strike, strike.beside) if one is not None)
        if turn % ROUND == 0:
            took = soak.calm()
            tell(f"{time.monotonic() - began:7.1f} s  calm: all published after {took:.1f} s")
    soak.is_over()
    return strikes


def main(lasts: float, seed: int) -> int:
    print(f"soak of {lasts:.0f} s, SEED={seed}", flush=True)
    with DurableRedis() as redis, PrivateRabbitMQ() as rabbitmq:
        with Proxy("127.0.0.1", rabbitmq.port) as first, Proxy("127.0.0.1", redis.port) as second:
            with Soak(seed, rabbitmq, redis, {"rabbitmq": first, "redis": second}) as soak:
                strikes = play(soak, lasts, lambda line: print(line, flush=True))
                record = soak.settle()
                healths = soak.healths()
                wrong = soak.late + violations(record, healths, soak.killed, soak.pace)
    print(report(record, healths, strikes))
    for one in wrong:
        print(f"WRONG: {one}")
    print(f"{f'{len(wrong)} promises broken' if wrong else 'all promises kept'}, SEED={seed}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(
        main(
            seconds(os.environ.get("SOAK") or "60m"),
            int(os.environ.get("SEED") or secrets.randbelow(10**6)),
        )
    )
