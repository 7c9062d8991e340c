"""The relay: it brings the rows of the outbox to the broker."""

from __future__ import annotations

import logging
import queue
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import PublishReturned
from ..relay_report import RelayReport
from .alias_line import AliasLine
from .backoff import Backoff
from .chain import Chain
from .database import Database
from .inbox import sweep_inbox
from .relay_numbers import RelayNumbers
from .relay_settings import RelaySettings
from .row import Row
from .settlement import GivenBack, Settlement
from .store import Outbox
from .verdicts import Verdict, told, verdict_of
from .wake_up import WakeUp

if TYPE_CHECKING:
    from ..aliases import Pools

__all__ = ["Relay"]

logger = logging.getLogger("kombu_pools_ext.outbox")

T = TypeVar("T")

#: Seconds for which answers are gathered before the database is told: some ten messages take so long, and a transaction
#: for each of them would take longer.
_GATHER = 0.01
#: Rows of one key that are claimed together, behind the one that was confirmed.
_OF_A_KEY = 50
#: Rows that try whether a broker is there again, so that an outage does not go through the whole table.
_TO_TRY = 10
#: Seconds between two looks at what no relay serves, and at delivered rows that were kept long enough.
_NOW_AND_THEN = 60.0
#: Seconds between two looks at how the outbox stands, for ``status``.
_REPORT = 5.0
#: Seconds that an outage keeps a relay from trying again, at first and at most.
_OUTAGE = (0.5, 10.0)
#: Seconds until a message that the broker refused is tried again, at first and at most.
_REFUSED = (1.0, 300.0)
#: Seconds until a message whose confirm did not come is sent again, at first and at most.
_UNKNOWN = (0.5, 10.0)
#: Seconds between two tries to reach the database, at first and at most.
_DATABASE = (0.1, 10.0)
#: Seconds that a relay that stops tries to tell the database what became of its last rows.
_LAST_WORDS = 10.0


class Relay:
    """Publishes the rows of one database's outbox, in the thread that calls :meth:`run`.

    Run as many as you like, on as many machines. None of them holds a transaction while it talks to the broker.

    :param pools: where the messages go.
    :param database: where the rows are. It is this relay's alone, which closes it at the end.
    :param aliases: whose rows; ``None`` is all that are configured.
    :raises ValueError: if the lease is shorter than a publish may take.
    """

    def __init__(
        self,
        pools: Pools,
        database: Database,
        settings: RelaySettings | None = None,
        aliases: Sequence[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pools = pools
        self._outbox = Outbox(database)
        self._settings = settings or RelaySettings()
        self._aliases = None if aliases is None else list(aliases)
        self._clock = clock
        self._token = uuid.uuid4().hex
        self._lines: dict[str, AliasLine] = {}
        #: Answers of the broker: the chain, and the error of its first row. ``None`` only wakes the relay.
        self._answers: queue.SimpleQueue[tuple[Chain, BaseException | None] | None] = (
            queue.SimpleQueue()
        )
        self._fates = Settlement()
        self._last_of_keys: list[Row] = []
        self._stopping = False
        self._database_failures = 0
        self._database_again = 0.0
        self._housekeeping = 0.0
        self._next_report = 0.0
        self._refused = Backoff(*_REFUSED)
        self._unknown = Backoff(*_UNKNOWN)
        self._away = Backoff(*_OUTAGE)
        self._reconnecting = Backoff(*_DATABASE)
        #: What it has done.
        self.numbers = RelayNumbers()
        self._check_lease()

    def _check_lease(self) -> None:
        for alias in self._served():
            needed = self._longest_publish(alias)
            if needed is not None and self._settings.lease <= needed:
                raise ValueError(
                    f"lease is {self._settings.lease:g} s, and a publish to alias {alias!r} may take {needed:g} s "
                    "(ACQUIRE_TIMEOUT plus CONFIRM_TIMEOUT); make the lease longer, or the time-outs shorter"
                )

    def _served(self) -> list[str]:
        return list(self._pools.settings) if self._aliases is None else self._aliases

    def _longest_publish(self, alias: str) -> float | None:
        """Seconds that a publish may take; ``None`` means without end."""
        settings = self._pools.settings_of(alias)
        if settings.acquire_timeout is None:
            return None
        return settings.acquire_timeout + settings.confirm_timeout

    def stop(self) -> None:
        """Have :meth:`run` return soon. A signal handler may call it, and any thread."""
        self._stopping = True
        self._answers.put(None)

    def run(self) -> None:
        """Publish rows until :meth:`stop` is called.

        A database or a broker that is away is waited for. At the end the relay waits for the answers that are on their
        way, and gives back what it has not sent.

        :raises SchemaMismatch: if the tables are those of another version.
        """
        self._run(until_empty=False)

    def drain(self) -> None:
        """Publish the rows that are due, and return when none is left that is due, or the broker is away."""
        self._run(until_empty=True)

    def _run(self, *, until_empty: bool) -> None:
        database = self._outbox.database
        wake_up = WakeUp(database, lambda: self._answers.put(None), self._reconnecting)
        try:
            if until_empty:
                self._outbox.check_schema()
            else:
                self._await_schema()
                wake_up.start()
            while not self._stopping:
                claimed = self._claim_all()
                if until_empty and not claimed and self._is_drained():
                    return
                self._hear(0.0 if claimed else self._pause())
                self._tell()
            self._wind_up()
        finally:
            wake_up.stop()
            database.close()
            self._pools.relay_reports.clear()

    def _await_schema(self) -> None:
        """Look whether the tables are those of this version, once the database can be reached."""

        def is_right() -> bool:
            self._outbox.check_schema()
            return True

        while not self._stopping and not self._with_database(is_right):
            self._hear(max(0.0, self._database_again - self._clock()))

    def _is_drained(self) -> bool:
        """Whether nothing is under way, and there was nothing due at the last look; if not so, look again."""
        if self._under_way or self._fates:
            return False
        is_seen = all(line.was_empty for line in self._lines.values())
        for line in self._lines.values():
            line.look_again(0.0)
        return is_seen

    # -- claiming ----------------------------------------------------------------------------------------------------

    @property
    def _under_way(self) -> int:
        return sum(len(line.chains) for line in self._lines.values())

    def _claim_all(self) -> bool:
        """Claim what there is room for; return whether something was claimed."""
        now = self._clock()
        if now < self._database_again:
            return False
        if now >= self._housekeeping:
            self._housekeeping = now + _NOW_AND_THEN
            self._keep_house()
        if now >= self._next_report:
            self._report(now)
        claimed = False
        for alias in self._served():
            line = self._lines.setdefault(alias, AliasLine(alias))
            room = min(self._settings.batch, _TO_TRY if line.failures else self._settings.batch)
            room -= len(line.chains)
            # A claim for a few rows costs as much as one for many, so it waits until there is room for many.
            is_worth_it = room * 2 >= self._settings.batch or not line.chains
            if now < line.again:
                line.was_empty = True
            elif line.is_due(now) and is_worth_it and room > 0:
                claimed = self._claim(line, room) or claimed
        return claimed

    def _claim(self, line: AliasLine, room: int) -> bool:
        began = self._clock()
        claim = self._with_database(
            lambda: self._outbox.claim(line.alias, self._token, room, self._settings.lease)
        )
        if claim is None:
            return False
        line.look_again(0.0 if claim.is_full else began + self._settings.poll)
        line.was_empty = not claim.rows
        ends = began + self._settings.lease
        for row in claim.rows:
            if row.id in line.ids:
                # Its lease has ended while its message is still on its way, and is this relay's again now.
                continue
            self._start(line, Chain(ends, deque([row])))
        return bool(claim.rows)

    def _keep_house(self) -> None:
        if self._settings.keep:
            self._with_database(lambda: self._outbox.sweep(self._settings.keep))
        if self._settings.keep_inbox:
            self._with_database(
                lambda: sweep_inbox(self._outbox.database, self._settings.keep_inbox)
            )
        numbers = self._with_database(self._outbox.aliases) or ()
        for alias in sorted(set(numbers) - set(self._pools.settings)):
            logger.warning(
                "outbox: rows of the alias %r wait, and this process has no pool of that name; configure it, or purge "
                "the rows",
                alias,
            )

    def _report(self, now: float) -> None:
        """Look how the outbox stands, for ``status``."""
        seconds = now - self._next_report + _REPORT if self._next_report else 0.0
        self._next_report = now + _REPORT
        for alias in self._served():
            look = self._with_database(partial(self._outbox.look, alias))
            if look is None:
                return
            rows, lag, dead = look
            line = self._lines.setdefault(alias, AliasLine(alias))
            rate = (line.delivered - line.reported) / seconds if seconds else 0.0
            line.reported = line.delivered
            self._pools.relay_reports[alias] = RelayReport(
                line.delivered, round(rate, 1), rows, round(lag, 3), dead
            )

    # -- publishing --------------------------------------------------------------------------------------------------

    def _start(self, line: AliasLine, chain: Chain) -> None:
        line.chains.append(chain)
        line.ids.update(row.id for row in chain.rows)
        self._publish(line, chain)

    def _publish(self, line: AliasLine, chain: Chain) -> None:
        """Send the first row of *chain*. The answer comes to :meth:`_hear`, also if there is none to wait for."""
        try:
            message = chain.first.message
            arguments = self._without_needless_declare(line, chain, message.arguments)
        except Exception as error:
            # Whatever it raises: it is the fault of this row.
            self._answers.put((chain, ValueError(f"it cannot be read: {told(error)}")))
            return
        try:
            future = self._pools.submit(message.body, using=line.alias, **arguments)
        except Exception as error:
            self._answers.put((chain, error))
            return
        future.add_done_callback(lambda done: self._answers.put((chain, _error_of(done))))

    def _without_needless_declare(
        self, line: AliasLine, chain: Chain, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        """Return *arguments* without a declaration that was made before, if its loss would not go unnoticed.

        A declaration costs more than all else about a message. If the queue was deleted since, a message to the default
        exchange comes back, and is sent again with its declaration.
        """
        chain.declare, chain.relies = arguments.get("declare") or (), False
        if not chain.declare or not line.has_declared(chain.declare):
            return arguments
        settings = self._pools.settings_of(line.alias)
        mandatory = arguments.get("mandatory")
        if mandatory is None:
            mandatory = settings.mandatory
        if arguments["exchange"] or not mandatory or not settings.has_confirms:
            return arguments
        chain.relies = True
        return {**arguments, "declare": None}

    def _pause(self) -> float:
        """Seconds until there may be something to do, if nobody wakes the relay."""
        now = self._clock()
        times = [now + self._settings.poll]
        # A database that is away is asked for nothing before its time.
        times += [max(one, self._database_again) for one in (self._housekeeping, self._next_report)]
        if self._fates:
            times.append(self._database_again)
        for line in self._lines.values():
            # One with rows on their way is looked at when they are answered.
            if not line.chains:
                times.append(max(line.again, line.next_look, self._database_again))
        return max(0.0, min(times) - now)

    def _hear(self, seconds: float) -> None:
        """Take in the answers that are there; wait for the first for *seconds* at most."""
        until = 0.0
        try:
            answer = self._answers.get(timeout=seconds) if seconds else self._answers.get_nowait()
            while True:
                if answer is None:
                    for line in self._lines.values():
                        line.look_again(0.0)
                    until = 0.0
                else:
                    self._judge(*answer)
                    until = until or self._clock() + _GATHER
                # The database is told of many rows at a time, so a moment is worth waiting for more.
                left = until - self._clock() if self._under_way else 0.0
                answer = self._answers.get(timeout=left) if left > 0 else self._answers.get_nowait()
        except queue.Empty:
            return

    def _judge(self, chain: Chain, error: BaseException | None) -> None:
        line = self._lines[chain.first.alias]
        if chain.relies and isinstance(error, PublishReturned):
            line.forget_declared()
            self._publish(line, chain)
            return
        row = chain.rows.popleft()
        verdict = verdict_of(error)
        line.ids.discard(row.id)
        if verdict is Verdict.DONE:
            self.numbers.delivered += 1
            line.delivered += 1
            line.failures = line.unanswered = 0
            self._fates.done.append(row.id)
            line.note_declared(chain.declare)
        else:
            assert error is not None
            self._failed(line, chain, row, verdict, error)
        goes_on = verdict is Verdict.DONE or (
            verdict is Verdict.DEAD and not self._settings.stop_keys
        )
        if goes_on and row.order_key is not None and not chain.rows:
            self._last_of_keys.append(row)
        if chain.rows and self._may_go_on(line, chain):
            self._publish(line, chain)
        else:
            if chain.rows:
                self._give_back(line, chain.rows, 0.0)
            line.chains.remove(chain)

    def _failed(
        self, line: AliasLine, chain: Chain, row: Row, verdict: Verdict, error: BaseException
    ) -> None:
        """Note that *row* was not delivered; what follows it in its key waits as long, unless it is dead."""
        reason = told(error)
        if verdict is Verdict.DEAD:
            self.numbers.dead += 1
            logger.error("outbox: %r is dead: %s", row, reason)
            self._fates.dead.append((row, reason))
            if self._settings.stop_keys:
                self._give_back(line, chain.rows, 0.0)
                chain.rows.clear()
            return
        if verdict is Verdict.REFUSED:
            self.numbers.refused += 1
            seconds = self._refused.seconds(row.attempts)
            logger.warning(
                "outbox: %r was refused, for the %d. time; it is tried again in %.1f s: %s",
                *(row, row.attempts + 1, seconds, reason),
            )
        else:
            self.numbers.away += 1
            seconds = self._is_away(line, reason, known=verdict is Verdict.AWAY)
        self._fates.given_back.append(
            GivenBack((row.id,), seconds, reason, verdict is Verdict.REFUSED)
        )
        self._give_back(line, chain.rows, seconds)
        chain.rows.clear()

    def _is_away(self, line: AliasLine, reason: str, *, known: bool) -> float:
        """Leave the alias alone for a while; return the seconds until its rows are due again."""
        now = self._clock()
        if not known:
            line.unanswered += 1
            return self._unknown.seconds(line.unanswered - 1)
        if now >= line.again:
            seconds = self._away.seconds(line.failures)
            line.failures += 1
            line.again = now + seconds
            line.look_again(0.0)
            logger.warning(
                "outbox: alias %r takes no messages; they wait, and are tried again in %.1f s: %s",
                *(line.alias, seconds, reason),
            )
        return 0.0

    def _may_go_on(self, line: AliasLine, chain: Chain) -> bool:
        """Whether the next row of *chain* can have its answer before the lease ends, and somebody wants it sent."""
        now = self._clock()
        needed = self._longest_publish(line.alias) or 0.0
        return not self._stopping and now >= line.again and now + needed < chain.ends

    def _give_back(self, line: AliasLine, rows: Iterable[Row], seconds: float) -> None:
        ids = tuple(row.id for row in rows)
        if ids:
            line.ids.difference_update(ids)
            self._fates.given_back.append(GivenBack(ids, seconds))

    # -- telling the database ----------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Tell the database what became of rows, unless it is away; then the fates are kept, and told later."""
        if not self._fates or self._clock() < self._database_again:
            return
        began = self._clock()
        following: list[Row] | None = []
        if self._last_of_keys and not self._stopping:
            # Before these are marked: as long as they are not, nobody else takes a later row of their keys.
            following = self._with_database(
                lambda: self._outbox.claim_next(
                    self._last_of_keys, self._token, _OF_A_KEY, self._settings.lease
                )
            )
        if following is None:
            return
        lost = self._with_database(
            lambda: self._outbox.settle(
                self._token,
                self._fates,
                keep=bool(self._settings.keep),
                stop_keys=self._settings.stop_keys,
            )
        )
        if lost is None:
            # Another claim of the same rows does no harm: they are this relay's.
            return
        if lost:
            self.numbers.lost += lost
            logger.warning(
                "outbox: %d rows belong to another relay by now, because this one took longer than its lease of %g s; "
                "their messages may arrive twice, with the same message_id",
                *(lost, self._settings.lease),
            )
        self._fates, self._last_of_keys = Settlement(), []
        chains: dict[tuple[str, str | None], Chain] = {}
        for row in following:
            where = row.alias, row.order_key
            chains.setdefault(where, Chain(began + self._settings.lease)).rows.append(row)
        for (alias, _), chain in chains.items():
            self._start(self._lines[alias], chain)

    def _with_database(self, work: Callable[[], T]) -> T | None:
        """Return what *work* returns; ``None`` if the database failed, which is left alone for a while then."""
        database = self._outbox.database
        try:
            result = work()
        except database.errors as error:
            seconds = self._reconnecting.seconds(self._database_failures)
            self._database_failures += 1
            self._database_again = self._clock() + seconds
            logger.warning(
                "outbox: the database failed, and is tried again in %.1f s: %s",
                *(seconds, told(error)),
            )
            database.close()
            return None
        self._database_failures = 0
        return result

    def _wind_up(self) -> None:
        """Wait for the answers that are on their way, and tell the database."""
        patience = max(
            (self._longest_publish(one) or 0.0 for one, line in self._lines.items() if line.chains),
            default=0.0,
        )
        until = self._clock() + patience
        while self._under_way and (left := until - self._clock()) > 0:
            self._hear(left)
        until = self._clock() + _LAST_WORDS
        while self._fates and self._clock() < until:
            self._tell()
            if self._fates:
                time.sleep(max(0.0, min(self._database_again, until) - self._clock()))
        if self._fates or self._under_way:
            logger.warning(
                "outbox: the relay ends without having told the database of %d rows; they are due again when its lease "
                "ends, and may arrive twice, with the same message_id",
                self._fates.count + self._under_way,
            )


def _error_of(future: object) -> BaseException | None:
    # Nobody cancels these futures but the end of the process.
    if future.cancelled():  # type: ignore[attr-defined]
        return TimeoutError("the publish was cancelled")
    error: BaseException | None = future.exception()  # type: ignore[attr-defined]
    return error
