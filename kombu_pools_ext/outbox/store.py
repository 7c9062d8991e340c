"""The statements of the outbox, written once for all databases."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..prepared import PreparedMessage
from ..relay_report import MOST_COUNTED
from .claim import Claim
from .database import Cursor, Database
from .dialects import Dialect, dialect_of
from .numbers import AliasNumbers
from .row import Row, check_row
from .schema import OUTBOX, TABLES
from .schema_errors import SchemaMismatch
from .settlement import GivenBack, Settlement
from .states import State

__all__ = ["Filter", "Outbox", "write"]

logger = logging.getLogger("kombu_pools_ext.outbox")

#: Those that a writer fills in, but for the times.
_WRITTEN = (
    *("message_id", "alias", "order_key", "exchange", "routing_key"),
    *("arguments", "body", "size"),
)
_OF_A_ROW = (
    *("id", "message_id", "alias", "order_key", "attempts", "exchange", "routing_key"),
    *("arguments", "body"),
)
#: Bytes of the bodies of one INSERT, far below the 16 MiB that MySQL and MariaDB take by default (max_allowed_packet).
_MOST_BYTES = 4 * 1024 * 1024
#: Ids in one statement.
_AT_ONCE = 1000
#: Bytes of the bodies that one claim fetches. The first row is fetched whatever its size.
_CLAIMED_BYTES = 32 * 1024 * 1024
#: Keys whose next rows are fetched by one statement.
_KEYS_AT_ONCE = 50
#: A time that never comes, for rows behind a dead one that stops its key: the year 5138.
_NEVER = 100_000_000_000_000_000


@dataclass(frozen=True)
class Filter:
    """Which rows a command means.

    :param aliases: of these; ``None`` is all.
    :param older_than: seconds since the row got its state, at least.
    :param reason: a text that the reason contains.
    :param states: in these.
    :param ids: of these, a few thousand at most; ``None`` is all.
    """

    states: Sequence[State]
    aliases: Sequence[str] | None = None
    older_than: float | None = None
    reason: str | None = None
    ids: Sequence[int] | None = None


def write(
    cursor: Cursor, vendor: str, messages: Sequence[tuple[PreparedMessage, str | None]]
) -> None:
    """Insert *messages*, each with its key, into the outbox, by one statement as far as their bytes allow.

    :param cursor: of the application's transaction.
    :raises TypeError, ValueError: for what no row can hold. Nothing is written then.
    """
    dialect = dialect_of(vendor)
    rows = [
        (
            *(message.message_id, message.using, key),
            *(message.arguments["exchange"], message.arguments["routing_key"]),
            *(check_row(message, key), message.body, len(message.body)),
        )
        for message, key in messages
    ]
    dialect.lock_keys(cursor, {(m.using, key) for m, key in messages if key is not None})
    columns = ", ".join((*_WRITTEN, "state", "token", "attempts", "reason", "due_at", "created_at"))
    one = f"({_places(len(_WRITTEN))}, {State.WAITING:d}, '', 0, '', {dialect.now}, {dialect.now})"
    for some in _pieces(rows, dialect.most_parameters // len(_WRITTEN)):
        values = ", ".join([one] * len(some))
        cursor.execute(
            f"INSERT INTO {OUTBOX} ({columns}) VALUES {values}{dialect.notifying}",
            [value for row in some for value in row],
        )


class Outbox:
    """The outbox in one database, as relays and commands see it.

    A method is one transaction, or a few short ones. None of them talks to a broker.

    :param database: where it is.
    :raises ValueError: for a database of an unknown kind.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._dialect: Dialect = dialect_of(database.vendor)

    def check_schema(self) -> None:
        """Look whether the tables are those of this version.

        :raises SchemaMismatch: if they are not.
        :raises Exception: one of the database's errors, if it cannot be reached.
        """
        self._reach()
        for table, columns in TABLES.items():
            problem = ""
            try:
                with self.database.transaction() as cursor:
                    cursor.execute(f"SELECT * FROM {table} WHERE 1 = 0")
                    description: Any = getattr(cursor, "description", ())
                    there = {one[0] for one in description or ()}
                    cursor.fetchall()
            except self.database.errors as error:
                # It may have gone away meanwhile.
                self._reach()
                problem = f"it cannot be read: {error}".strip()
                raise SchemaMismatch(_mismatch(table, problem)) from error
            if missing := sorted(set(columns) - there):
                problem = f"it lacks {', '.join(missing)}"
            elif more := sorted(there - set(columns)):
                problem = f"it has {', '.join(more)}, which this version does not know"
            if problem:
                raise SchemaMismatch(_mismatch(table, problem))

    def _reach(self) -> None:
        with self.database.transaction() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchall()

    # -- relays ------------------------------------------------------------------------------------------------------

    def claim(self, alias: str, token: str, most: int, seconds: float) -> Claim:
        """Claim rows of *alias* that are due.

        :param token: of the relay. What becomes of the rows later needs it, so a relay that was frozen for longer than
            its lease cannot mark what another one has taken over.
        :param most: rows, at most.
        :param seconds: how long they are the relay's.
        """
        with self.database.transaction() as cursor:
            self._dialect.begin_as_relay(cursor)
            cursor.execute(
                f"SELECT id, order_key, size FROM {OUTBOX} WHERE alias = %s AND state = {State.WAITING:d} "
                f"AND due_at <= {self._dialect.now} ORDER BY due_at, id LIMIT %s{self._dialect.skip_locked}",
                [alias, most],
            )
            window = cursor.fetchall()
            is_full = len(window) == most
            behind = self._behind_others(cursor, [row[0] for row in window if row[1] is not None])
            if is_full and behind:
                self._park(cursor, behind)
            ids: list[int] = []
            room = _CLAIMED_BYTES
            for number, _, size in window:
                if number in behind:
                    continue
                room -= size
                if ids and room < 0:
                    is_full = True
                    break
                ids.append(number)
            self._lease(cursor, ids, token, seconds)
            rows = self._fetch(cursor, ids)
        return Claim(rows, is_full)

    def claim_next(self, rows: Iterable[Row], token: str, most: int, seconds: float) -> list[Row]:
        """Claim the rows that come after *rows* in their keys. These are claimed, and not marked yet.

        :param most: rows of one key, at most.
        :returns: in the order of their ids.
        """
        first = {row.id: row for row in rows if row.order_key is not None}
        if not first:
            return []
        with self.database.transaction() as cursor:
            self._dialect.begin_as_relay(cursor)
            followed = []
            following = self._dialect.rows_of_key(
                "k.id", "r.alias", "r.order_key", State.WAITING, "k.id > r.id", 1
            )
            for some in _pieces_of(sorted(first), _AT_ONCE):
                cursor.execute(
                    f"SELECT r.id, ({following}) FROM {OUTBOX} r WHERE r.id IN ({_places(len(some))})",
                    some,
                )
                followed += [first[one] for one, follower in cursor.fetchall() if follower]
            ids: list[tuple[int, int]] = []
            part = self._dialect.rows_of_key(
                "k.id, k.size", "%s", "%s", State.WAITING, "k.id > %s", int(most)
            )
            for group in _pieces_of(followed, _KEYS_AT_ONCE):
                cursor.execute(
                    " UNION ALL ".join(f"SELECT * FROM ({part}) k{n}" for n in range(len(group))),
                    [value for row in group for value in (row.alias, row.order_key, row.id)],
                )
                ids += [(number, size) for number, size in cursor.fetchall()]
            # A key's rows are left out from one on, never one in between.
            room = _CLAIMED_BYTES
            wanted: list[int] = []
            for number, size in sorted(ids):
                room -= size
                if wanted and room < 0:
                    break
                wanted.append(number)
            self._lease(cursor, wanted, token, seconds)
            return self._fetch(cursor, wanted)

    def settle(self, token: str, fates: Settlement, *, keep: bool, stop_keys: bool) -> int:
        """Note what has become of rows.

        :param token: of the relay. Nothing is done to rows that have another one by now.
        :param keep: whether delivered rows stay, as DONE, until :meth:`sweep`.
        :param stop_keys: whether no later row of a dead one's key is delivered until it is requeued or purged.
        :returns: how many rows belong to another relay by now.
        """
        with self.database.transaction() as cursor:
            self._dialect.begin_as_relay(cursor)
            found = self._finish(cursor, token, fates.done, keep)
            for row, reason in fates.dead:
                cursor.execute(
                    f"UPDATE {OUTBOX} SET state = {State.DEAD:d}, reason = %s, token = %s, "
                    f"due_at = {self._dialect.now}, ended_at = {self._dialect.now} "
                    f"WHERE id = %s AND token = %s",
                    [_text(reason), _STOPS if stop_keys else "", row.id, token],
                )
                found += cursor.rowcount
            for one in fates.given_back:
                found += self._give_back(cursor, token, one)
        return fates.count - found

    def _finish(self, cursor: Cursor, token: str, ids: Sequence[int], keep: bool) -> int:
        found = 0
        for some in _pieces_of(ids, _AT_ONCE):
            where = f"WHERE id IN ({_places(len(some))}) AND token = %s"
            if keep:
                cursor.execute(
                    f"UPDATE {OUTBOX} SET state = {State.DONE:d}, reason = '', token = '', "
                    f"due_at = {self._dialect.now}, ended_at = {self._dialect.now} {where}",
                    [*some, token],
                )
            else:
                cursor.execute(f"DELETE FROM {OUTBOX} {where}", [*some, token])
            found += cursor.rowcount
        return found

    def _give_back(self, cursor: Cursor, token: str, rows: GivenBack) -> int:
        found = 0
        said = "" if rows.reason is None else ", reason = %s"
        reason = [] if rows.reason is None else [_text(rows.reason)]
        for some in _pieces_of(rows.ids, _AT_ONCE):
            cursor.execute(
                f"UPDATE {OUTBOX} SET due_at = {self._dialect.now} + %s, token = '', "
                f"attempts = attempts + {int(rows.is_refused)}{said} "
                f"WHERE id IN ({_places(len(some))}) AND token = %s",
                [_micro(rows.seconds), *reason, *some, token],
            )
            found += cursor.rowcount
        return found

    def _behind_others(self, cursor: Cursor, ids: Sequence[int]) -> dict[int, int]:
        """Return those of *ids* that have to wait for an earlier row of their key, with the time until which."""
        behind: dict[int, int] = {}
        of_key = ("k.id", "r.alias", "r.order_key")
        waiting = self._dialect.rows_of_key(*of_key, State.WAITING, "k.id < r.id", 1)
        dead = self._dialect.rows_of_key(
            *of_key, State.DEAD, f"k.token = '{_STOPS}' AND k.id < r.id", 1
        )
        for some in _pieces_of(ids, _AT_ONCE):
            cursor.execute(
                f"SELECT r.id, ({waiting}), ({dead}) FROM {OUTBOX} r WHERE r.id IN ({_places(len(some))})",
                list(some),
            )
            found = cursor.fetchall()
            first = sorted({one for _, one, stop in found if one is not None and stop is None})
            until: dict[int, int] = {}
            for others in _pieces_of(first, _AT_ONCE):
                cursor.execute(
                    f"SELECT id, due_at FROM {OUTBOX} WHERE id IN ({_places(len(others))})",
                    list(others),
                )
                until.update((row[0], row[1]) for row in cursor.fetchall())
            for number, one, stop in found:
                if stop is not None:
                    behind[number] = _NEVER
                elif one is not None:
                    behind[number] = until.get(one, 0)
        return behind

    def _park(self, cursor: Cursor, behind: dict[int, int]) -> None:
        """Have rows that wait for an earlier one be due when that one is, so that no scan meets them before."""
        together: dict[int, list[int]] = {}
        for number, until in behind.items():
            together.setdefault(until, []).append(number)
        for until, ids in together.items():
            for some in _pieces_of(ids, _AT_ONCE):
                cursor.execute(
                    f"UPDATE {OUTBOX} SET due_at = %s WHERE id IN ({_places(len(some))}) AND due_at < %s",
                    [until, *some, until],
                )

    def _lease(self, cursor: Cursor, ids: Sequence[int], token: str, seconds: float) -> None:
        for some in _pieces_of(ids, _AT_ONCE):
            cursor.execute(
                f"UPDATE {OUTBOX} SET token = %s, due_at = {self._dialect.now} + %s "
                f"WHERE id IN ({_places(len(some))})",
                [token, _micro(seconds), *some],
            )

    def _fetch(self, cursor: Cursor, ids: Sequence[int]) -> list[Row]:
        rows: list[Row] = []
        for some in _pieces_of(ids, _AT_ONCE):
            cursor.execute(
                f"SELECT {', '.join(_OF_A_ROW)} FROM {OUTBOX} WHERE id IN ({_places(len(some))}) ORDER BY id",
                list(some),
            )
            rows += [Row(*_of_a_row(row)) for row in cursor.fetchall()]
        rows.sort(key=lambda row: row.id)
        return rows

    # -- commands ----------------------------------------------------------------------------------------------------

    def numbers(self) -> list[AliasNumbers]:
        """Return how the outbox stands, for each alias that has rows, in the order of their names."""
        waiting, done, dead = State.WAITING, State.DONE, State.DEAD
        with self.database.transaction() as cursor:
            cursor.execute(
                f"SELECT alias, SUM(CASE WHEN state = {waiting:d} THEN 1 ELSE 0 END), "
                f"{self._dialect.now} - MIN(CASE WHEN state = {waiting:d} THEN created_at END), "
                f"SUM(CASE WHEN state = {waiting:d} AND attempts > 0 THEN 1 ELSE 0 END), "
                f"SUM(CASE WHEN state = {dead:d} THEN 1 ELSE 0 END), "
                f"SUM(CASE WHEN state = {done:d} THEN 1 ELSE 0 END) "
                f"FROM {OUTBOX} GROUP BY alias ORDER BY alias"
            )
            return [
                AliasNumbers(
                    *(alias, int(waits), max(0, int(age or 0)) / 1e6),
                    *(int(refused), int(deads), int(dones)),
                )
                for alias, waits, age, refused, deads, dones in cursor.fetchall()
            ]

    def aliases(self) -> set[str]:
        """Return the aliases whose rows wait."""
        return self._aliases_with(State.WAITING)

    def _aliases_with(self, state: State) -> set[str]:
        """Return the aliases that have rows in *state*, by a step in the index for each alias that has rows at all."""
        found: set[str] = set()
        with self.database.transaction() as cursor:
            last = ""
            while True:
                cursor.execute(
                    f"SELECT alias FROM {OUTBOX} WHERE alias > %s ORDER BY alias LIMIT 1", [last]
                )
                rows = cursor.fetchall()
                if not rows:
                    return found
                last = rows[0][0]
                cursor.execute(
                    # With an order, so that no database goes through the table to find one.
                    f"SELECT due_at FROM {OUTBOX} WHERE alias = %s AND state = {state:d} ORDER BY due_at LIMIT 1",
                    [last],
                )
                if cursor.fetchall():
                    found.add(last)

    def look(self, alias: str) -> tuple[int, float, int]:
        """Return how many rows of *alias* wait, the age in seconds of the oldest, and how many are dead.

        Both are counted up to :data:`.MOST_COUNTED`, so this is cheap however many there are.
        """
        with self.database.transaction() as cursor:
            told = []
            for state in (State.WAITING, State.DEAD):
                cursor.execute(
                    f"SELECT COUNT(*), {self._dialect.now} - MIN(created_at) FROM (SELECT created_at FROM {OUTBOX} "
                    f"WHERE alias = %s AND state = {state:d} ORDER BY due_at, id LIMIT {MOST_COUNTED}) few",
                    [alias],
                )
                told.append(cursor.fetchall()[0])
        (rows, age), (dead, _) = told
        return int(rows), max(0, int(age or 0)) / 1e6, int(dead)

    def count(self, rows: Filter) -> int:
        """Return how many rows there are of those that *rows* describes."""
        where, parameters = self._where(rows)
        with self.database.transaction() as cursor:
            cursor.execute(f"SELECT COUNT(*) FROM {OUTBOX} WHERE {where}", parameters)
            return int(cursor.fetchall()[0][0])

    def requeue(self, rows: Filter) -> int:
        """Have rows that are DEAD or put off be published as soon as possible; return how many.

        They keep their ids, and so their places among the rows of their keys that were not delivered yet.
        """
        return sum(map(self._requeue, self._ids(rows)))

    def _requeue(self, ids: Sequence[int]) -> int:
        with self.database.transaction() as cursor:
            self._dialect.begin_to_write(cursor)
            self._let_keys_go_on(cursor, ids)
            # A row that a relay has stays that relay's.
            cursor.execute(
                f"UPDATE {OUTBOX} SET state = {State.WAITING:d}, due_at = {self._dialect.now}, token = '', "
                f"ended_at = NULL WHERE id IN ({_places(len(ids))}) AND {self._is_free}",
                list(ids),
            )
            return cursor.rowcount

    def purge(self, rows: Filter) -> int:
        """Delete rows for good, in small transactions; return how many."""
        return sum(map(self._purge, self._ids(rows)))

    def _purge(self, ids: Sequence[int]) -> int:
        with self.database.transaction() as cursor:
            self._dialect.begin_to_write(cursor)
            self._let_keys_go_on(cursor, ids)
            cursor.execute(
                f"DELETE FROM {OUTBOX} WHERE id IN ({_places(len(ids))}) AND {self._is_free}",
                list(ids),
            )
            return cursor.rowcount

    @property
    def _is_free(self) -> str:
        """A condition: no relay has the row, or one that had it has died since, or was frozen."""
        return f"(token IN ('', '{_STOPS}') OR due_at <= {self._dialect.now})"

    def _let_keys_go_on(self, cursor: Cursor, ids: Sequence[int]) -> None:
        """Have the rows be due that wait for dead ones among *ids*."""
        cursor.execute(
            f"SELECT DISTINCT alias, order_key FROM {OUTBOX} WHERE id IN ({_places(len(ids))}) "
            f"AND state = {State.DEAD:d} AND token = '{_STOPS}'",
            list(ids),
        )
        for alias, key in cursor.fetchall():
            cursor.execute(
                f"UPDATE {OUTBOX} SET due_at = {self._dialect.now} WHERE alias = %s AND order_key = %s "
                f"AND state = {State.WAITING:d} AND due_at = {_NEVER}",
                [alias, key],
            )

    def _ids(self, rows: Filter) -> Iterator[list[int]]:
        """Yield the ids of the rows that there are now, in pieces."""
        where, parameters = self._where(rows)
        last = 0
        while True:
            with self.database.transaction() as cursor:
                cursor.execute(
                    f"SELECT id FROM {OUTBOX} WHERE {where} AND id > %s ORDER BY id LIMIT {_AT_ONCE}",
                    [*parameters, last],
                )
                ids = [row[0] for row in cursor.fetchall()]
            if not ids:
                return
            last = ids[-1]
            yield ids

    def _where(self, rows: Filter) -> tuple[str, list[Any]]:
        parts = [f"state IN ({', '.join(f'{state:d}' for state in rows.states)})"]
        parameters: list[Any] = []
        if rows.aliases is not None:
            parts.append(f"alias IN ({_places(len(rows.aliases))})" if rows.aliases else "1 = 0")
            parameters += rows.aliases
        if rows.ids is not None:
            parts.append(f"id IN ({_places(len(rows.ids))})" if rows.ids else "1 = 0")
            parameters += rows.ids
        if rows.older_than is not None:
            parts.append(f"COALESCE(ended_at, created_at) <= {self._dialect.now} - %s")
            parameters.append(_micro(rows.older_than))
        if rows.reason is not None:
            escaped = rows.reason.replace("!", "!!").replace("%", "!%").replace("_", "!_")
            parts.append("reason LIKE %s ESCAPE '!'")
            parameters.append(f"%{escaped}%")
        return " AND ".join(parts), parameters

    def sweep(self, seconds: float) -> int:
        """Delete DONE rows that were delivered more than *seconds* ago; return how many. An index finds them."""
        swept = 0
        for alias in sorted(self._aliases_with(State.DONE)):
            while True:
                with self.database.transaction() as cursor:
                    self._dialect.begin_to_write(cursor)
                    cursor.execute(
                        f"SELECT id FROM {OUTBOX} WHERE alias = %s AND state = {State.DONE:d} "
                        f"AND due_at <= {self._dialect.now} - %s ORDER BY due_at, id LIMIT {_AT_ONCE}"
                        f"{self._dialect.skip_locked}",
                        [alias, _micro(seconds)],
                    )
                    ids = [row[0] for row in cursor.fetchall()]
                    if not ids:
                        break
                    cursor.execute(f"DELETE FROM {OUTBOX} WHERE id IN ({_places(len(ids))})", ids)
                    swept += len(ids)
        return swept


#: The token of a dead row behind which its key waits. A relay's token has 32 characters.
_STOPS = "stops its key"


def _mismatch(table: str, problem: str) -> str:
    return (
        f"the table {table} is not that of this version of kombu-pools-ext: {problem}; migrate the database, or run "
        f"the version that it was migrated for. It should have {', '.join(TABLES[table])}"
    )


def _places(count: int) -> str:
    return ", ".join(["%s"] * count)


def _pieces(rows: Sequence[tuple[Any, ...]], most: int) -> Iterator[list[tuple[Any, ...]]]:
    """Cut *rows* to insert into pieces, by their number and by the size that comes last in each."""
    piece: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        if piece and (len(piece) == most or size + row[-1] > _MOST_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(row)
        size += row[-1]
    if piece:
        yield piece


def _pieces_of(things: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(things), most):
        yield things[start : start + most]


def _of_a_row(found: Sequence[Any]) -> Any:
    # Some drivers have a memoryview of the body.
    return (*found[:-1], bytes(found[-1]))


def _micro(seconds: float) -> int:
    return int(seconds * 1_000_000)


def _text(reason: str) -> str:
    """What a column of text takes: no NUL, no half of a surrogate pair, and no more than anybody reads."""
    return reason.replace("\0", "").encode("utf-8", "replace").decode()[:2000]
