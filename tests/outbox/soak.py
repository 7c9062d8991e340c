"""Writers, relays, and faults that strike at random: `make soak-outbox`, or `python -m tests.outbox.soak`.

`SOAK` is how long (60m, 90s, 2h), `SEED` what chance begins with; it is printed first. At the end it counts: what was
committed is in the broker, and nothing else; the messages of each key have arrived in the order of their commits; there
are no copies from before the first fault; no attempt was burned; the outbox is empty.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kombu
import psycopg

from kombu_pools_ext import Pools
from kombu_pools_ext.outbox import write
from kombu_pools_ext.outbox.dbapi import cursor_of
from tests.brokers import PrivateRabbitMQ
from tests.databases import Database, PrivatePostgreSQL
from tests.outbox.common import make_tables, message
from tests.outbox.relays import LEASE, RelayProcess
from tests.scenarios.soak import seconds

__all__ = ["Count", "Found", "main"]

QUEUE = "soak-outbox"
WRITERS, RELAYS, KEYS = 4, 3, 8
#: Seconds that an outbox has to become empty after the last fault.
DRAIN = 180.0
#: Seconds between two faults, at most.
LONGEST_GAP = 4.0
#: How many transactions are rolled back, and how many messages have no key.
ROLLED_BACK, WITHOUT_KEY = 0.2, 0.3


@dataclass
class Found:
    """What the database and the broker have in the end."""

    #: By message_id: its key, and its place among the commits of the key.
    committed: dict[str, tuple[str | None, int]]
    #: Messages whose transaction was rolled back.
    rolled_back: set[str]
    #: Messages in the order of their arrival.
    arrived: list[str]
    #: Committed before the first fault, with the outbox empty then.
    calm: set[str] = field(default_factory=set)
    #: Rows that are left: state and attempts.
    rows: list[tuple[int, int]] = field(default_factory=list)


class Count:
    """What is wrong, and what there was."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.copies = Counter(found.arrived)

    def violations(self) -> list[str]:
        """A line for each promise that was broken."""
        found, wrong = self.found, []
        lost = found.committed.keys() - self.copies.keys()
        strange = self.copies.keys() - found.committed.keys()
        for words, some in (
            ("were committed, and have not arrived", lost),
            ("were rolled back, and have arrived", strange & found.rolled_back),
            ("have arrived, and were never committed", strange - found.rolled_back),
            (
                "have arrived more than once, before the first fault",
                {one for one in found.calm if self.copies[one] > 1},
            ),
            ("have arrived out of their order", self.out_of_order()),
        ):
            if some:
                wrong.append(f"{len(some)} messages {words}: {', '.join(sorted(some)[:3])}")
        if found.rows:
            wrong.append(f"{len(found.rows)} rows are left (state, attempts): {found.rows[:3]}")
        return wrong

    def out_of_order(self) -> set[str]:
        """Messages that came after one that was committed later under the same key."""
        latest: dict[str, int] = {}
        wrong = set()
        for one in dict.fromkeys(self.found.arrived):
            key, place = self.found.committed.get(one, (None, 0))
            if key is None:
                continue
            if place < latest.get(key, -1):
                wrong.add(one)
            latest[key] = max(place, latest.get(key, -1))
        return wrong

    def __str__(self) -> str:
        copies = sum(self.copies.values()) - len(self.copies)
        return (
            f"{len(self.found.committed)} messages committed, {len(self.found.rolled_back)} rolled back, "
            f"{len(self.copies)} arrived, {copies} copies"
        )


class Writers:
    """Threads that write orders and messages, and commit or roll back."""

    def __init__(self, pools: Pools, database: Database, seed: int) -> None:
        self._pools, self._database = pools, database
        self._ended = threading.Event()
        self.rolled_back: set[str] = set()
        self.failures = 0
        self._threads = [
            threading.Thread(
                target=self._run, args=(random.Random(f"{seed}-{n}"),), name=f"writer {n}"
            )
            for n in range(WRITERS)
        ]

    def start(self) -> None:
        for one in self._threads:
            one.start()

    def stop(self) -> None:
        self._ended.set()
        for one in self._threads:
            one.join()

    def _run(self, dice: random.Random) -> None:
        connection = None
        while not self._ended.wait(dice.uniform(0.0, 0.1)):
            try:
                if connection is None:
                    connection = psycopg.connect(self._database.url, connect_timeout=5)
                self._transaction(connection, dice)
            except psycopg.Error:
                # Whether it was committed is what the table of the orders says.
                self.failures += 1
                if connection is not None:
                    connection.close()
                connection = None
                self._ended.wait(0.2)
        if connection is not None:
            connection.close()

    def _transaction(self, connection: Any, dice: random.Random) -> None:
        keys: list[str | None] = [
            None if dice.random() < WITHOUT_KEY else f"k{dice.randrange(KEYS)}"
            for _ in range(dice.randint(1, 3))
        ]
        messages = [(message(self._pools, key, QUEUE), key) for key in keys]
        ids = [one.message_id for one, _ in messages]
        cursor = connection.cursor()
        write(cursor_of(cursor, "postgresql"), "postgresql", messages)
        # After the messages: so the place is that of the commit, and only the outbox's own lock makes ids follow it.
        for number, key in sorted(
            zip(range(len(ids)), keys, strict=True), key=lambda one: (str(one[1]), one[0])
        ):
            cursor.execute(
                "UPDATE places SET place = place + 1 WHERE key = %s RETURNING place", [key or ""]
            )
            (place,) = cursor.fetchone()
            cursor.execute("INSERT INTO orders VALUES (%s, %s, %s)", [ids[number], key, place])
        if dice.random() < ROLLED_BACK:
            connection.rollback()
            self.rolled_back.update(ids)
        else:
            connection.commit()


class Soak:
    """The servers, the relays and the faults."""

    def __init__(self, seed: int, tell: Callable[[str], object] = print) -> None:
        self.dice = random.Random(seed)
        self.seed = seed
        self.tell = tell
        self.strikes: Counter[str] = Counter()
        #: What has yet to strike in this round: each kind once, in a random order.
        self._round: list[Callable[[], None]] = []

    def play(self, lasts: float) -> Count:
        """Soak for so many seconds."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.rabbitmq = stack.enter_context(PrivateRabbitMQ())
            self.postgresql = stack.enter_context(PrivatePostgreSQL())
            self.rabbitmq.start()
            self.postgresql.start()
            self.database = stack.enter_context(self.postgresql.database())
            self._make_tables()
            pools = Pools(default={"URL": self.rabbitmq.url})
            writers = Writers(pools, self.database, self.seed)
            self.relays = [
                stack.enter_context(
                    RelayProcess(self.rabbitmq.url, self.database, folder / f"relay-{n}.log")
                )
                for n in range(RELAYS)
            ]
            began = time.monotonic()
            writers.start()
            try:
                time.sleep(min(10.0, lasts / 6))
            finally:
                writers.stop()
            self._await_empty()
            calm = set(self._orders())
            self.tell(f"calm: {len(calm)} messages")
            rolled_back = writers.rolled_back
            writers = Writers(pools, self.database, self.seed + 1)
            writers.start()
            try:
                while time.monotonic() - began < lasts:
                    self._strike()
            finally:
                writers.stop()
            healed = time.monotonic()
            left = self._await_empty()
            self.tell(
                f"the outbox was empty {time.monotonic() - healed:.1f} s after the last fault"
            )
            for one in self.relays:
                code = one.end()
                if code:
                    self.tell(f"a relay has ended with {code}: {one.text[-2000:]}")
            found = Found(
                self._orders(), rolled_back | writers.rolled_back, self._arrived(), calm, left
            )
        return Count(found)

    def _make_tables(self) -> None:
        make_tables(self.database)
        with psycopg.connect(self.database.url) as connection:
            connection.execute("CREATE TABLE orders (id text, key text, place int)")
            connection.execute("CREATE TABLE places (key text PRIMARY KEY, place int)")
            for key in ["", *(f"k{n}" for n in range(KEYS))]:
                connection.execute("INSERT INTO places VALUES (%s, 0)", [key])
        with kombu.Connection(self.rabbitmq.url) as connection:
            kombu.Queue(QUEUE, durable=True)(connection.default_channel).declare()

    def _rows(self, statement: str) -> list[Any]:
        self.postgresql.start()
        with psycopg.connect(self.database.url) as connection:
            return connection.execute(statement.encode()).fetchall()

    def _orders(self) -> dict[str, tuple[str | None, int]]:
        return {one: (key, place) for one, key, place in self._rows("SELECT * FROM orders")}

    def _arrived(self) -> list[str]:
        arrived = []
        with kombu.Connection(self.rabbitmq.url) as connection:
            queue = kombu.Queue(QUEUE)(connection.default_channel)
            while (one := queue.get(no_ack=True)) is not None:
                arrived.append(one.properties["message_id"])
        return arrived

    def _await_empty(self) -> list[tuple[int, int]]:
        """Wait until no row is left; those that are left when the time is up."""
        deadline = time.monotonic() + DRAIN
        while rows := self._rows("SELECT state, attempts FROM kombu_pools_outbox LIMIT 10"):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        return rows

    # -- what strikes ------------------------------------------------------------------------------------------------

    def _strike(self) -> None:
        time.sleep(self.dice.uniform(0.2, LONGEST_GAP))
        if not self._round:
            kinds: list[Callable[[], None]] = [
                *(self._kill_relay, self._end_relay, self._freeze_relay),
                *(self._kill_broker, self._restart_broker, self._close_connections),
                *(self._kill_database, self._end_sessions),
            ]
            self._round = self.dice.sample(kinds, len(kinds))
        kind = self._round.pop()
        name = kind.__name__.strip("_").replace("_", " ")
        self.tell(name)
        self.strikes[name] += 1
        kind()

    def _kill_relay(self) -> None:
        relay = self.dice.choice(self.relays)
        relay.kill()
        relay.start()

    def _end_relay(self) -> None:
        relay = self.dice.choice(self.relays)
        assert relay.end() == 0, relay.text
        relay.start()

    def _freeze_relay(self) -> None:
        """For longer than its lease, or for less."""
        relay = self.dice.choice(self.relays)
        relay.signal(signal.SIGSTOP)
        time.sleep(self.dice.uniform(0.5, 2 * LEASE))
        relay.signal(signal.SIGCONT)

    def _kill_broker(self) -> None:
        self.rabbitmq.kill()
        time.sleep(self.dice.uniform(0.0, 3.0))
        self.rabbitmq.start()

    def _restart_broker(self) -> None:
        self.rabbitmq.stop()
        self.rabbitmq.start()

    def _close_connections(self) -> None:
        self.rabbitmq.close_connections()

    def _kill_database(self) -> None:
        self.postgresql.kill()
        time.sleep(self.dice.uniform(0.0, 3.0))
        self.postgresql.start()

    def _end_sessions(self) -> None:
        """As a failover does: all sessions are ended in the middle of what they do."""
        self._rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )


def main() -> int:
    lasts = seconds(os.environ.get("SOAK") or "60m")
    seed = int(os.environ.get("SEED") or secrets.randbelow(10**6))
    print(f"SEED={seed} SOAK={lasts:g}s", flush=True)
    soak = Soak(seed, lambda line: print(line, flush=True))
    count = soak.play(lasts)
    faults = ", ".join(f"{number} {kind}" for kind, number in sorted(soak.strikes.items()))
    print(f"{count}; {sum(soak.strikes.values())} faults: {faults}")
    wrong = count.violations()
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
