"""The commands of the outbox, for both frameworks: ``relay``, and ``outbox status|requeue|purge``.

The frameworks parse the arguments that this module describes, and call :func:`run_relay` and :func:`run_outbox`. The
exit codes are those of the other commands: 0: done; 1: it failed; 2: the arguments, the settings or the tables are
wrong, and nothing was done.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from ..aliases import Pools
from ..control.command_line import DONE, FAILED, FORMATS, MISUSED, Option, Screen
from ..control.rendering import as_json, printable
from ..errors import UnknownAlias
from ..settings import SettingsError
from .database import Database
from .numbers import AliasNumbers
from .relay import Relay
from .relay_settings import RelaySettings
from .schema_errors import SchemaMismatch
from .states import State
from .store import Filter, Outbox
from .verdicts import told

__all__ = [
    "ACTIONS",
    "OUTBOX",
    "OUTBOX_OPTIONS",
    "RELAY",
    "RELAY_OPTIONS",
    "run_outbox",
    "run_relay",
]

RELAY = "publish the rows of the outbox, until SIGTERM or Ctrl-C; run as many as you like"
OUTBOX = "look at the outbox, have rows published again, or delete them"

#: What can be done with the outbox.
ACTIONS = {
    "status": "how many rows wait, how old the oldest is, how many are dead",
    "requeue": "have dead rows published again",
    "purge": "delete dead rows for good, and delivered ones that were kept",
}

_DEFAULTS = RelaySettings()
_USING = Option("using", "alias of a pool, may be repeated; all by default", "ALIAS", many=True)

#: The options of ``relay``.
RELAY_OPTIONS: Sequence[Option] = (
    _USING,
    Option(
        "batch",
        f"rows of one alias at a time, at most (default: {_DEFAULTS.batch})",
        "ROWS",
        kind=int,
        default=_DEFAULTS.batch,
    ),
    Option(
        "lease",
        f"seconds for which claimed rows are this relay's (default: {_DEFAULTS.lease:g})",
        "SECONDS",
        kind=float,
        default=_DEFAULTS.lease,
    ),
    Option(
        "poll",
        f"seconds between two looks while nothing is due (default: {_DEFAULTS.poll:g})",
        "SECONDS",
        kind=float,
        default=_DEFAULTS.poll,
    ),
    Option(
        "keep",
        "seconds for which delivered rows stay in the table (default: 0, delete them at once)",
        "SECONDS",
        kind=float,
        default=_DEFAULTS.keep,
    ),
    Option(
        "keep-inbox",
        "seconds for which the inbox remembers what was received (default: 0, for ever)",
        "SECONDS",
        kind=float,
        default=_DEFAULTS.keep_inbox,
    ),
    Option("stop-keys", "a dead row stops its key until it is requeued or purged"),
    Option("once", "publish what is due, and end"),
)

#: The options of ``outbox``.
OUTBOX_OPTIONS: Sequence[Option] = (
    _USING,
    Option("older-than", "only rows that are dead, or delivered, for so long", "SECONDS", kind=float),
    Option("reason", "only rows whose reason contains this text", "TEXT"),
    Option("dry-run", "say how many rows there are, and change nothing"),
    Option("format", "table, or json for one JSON document", "FORMAT", choices=FORMATS, default="table"),
)  # fmt: skip


def run_relay(
    pools: Pools,
    database: Database,
    screen: Screen,
    *,
    using: Sequence[str] = (),
    batch: int = _DEFAULTS.batch,
    lease: float = _DEFAULTS.lease,
    poll: float = _DEFAULTS.poll,
    keep: float = _DEFAULTS.keep,
    keep_inbox: float = _DEFAULTS.keep_inbox,
    stop_keys: bool = False,
    once: bool = False,
) -> int:
    """Publish the rows of the outbox in *database* until a signal ends it.

    SIGTERM and Ctrl-C end it in order: it waits for the answers that are on their way. The handlers are put in place
    only in the main thread.

    :param using: aliases; empty means all.
    :param once: whether to return when nothing is due any more.
    :returns: the exit code.
    """
    try:
        settings = RelaySettings(batch, lease, poll, keep, stop_keys, keep_inbox)
        for alias in using or pools.settings:
            pools.settings_of(alias)
        relay = Relay(pools, database, settings, list(dict.fromkeys(using)) or None)
        with _stopped_by_signals(relay):
            if once:
                relay.drain()
            else:
                screen.write("the relay is running")
                relay.run()
    except (SchemaMismatch, UnknownAlias, SettingsError, ValueError) as error:
        return _complain(screen, error, MISUSED)
    except database.errors as error:
        return _complain(screen, error, FAILED)
    done = relay.numbers
    screen.write(
        f"the relay has ended: {done.delivered} delivered, {done.dead} dead, {done.refused} refused, "
        f"{done.away} not taken by a broker that was away"
    )
    return DONE


@contextlib.contextmanager
def _stopped_by_signals(relay: Relay) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        former[number] = signal.signal(number, lambda *_: relay.stop())
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def run_outbox(
    action: str,
    database: Database,
    screen: Screen,
    *,
    using: Sequence[str] = (),
    older_than: float | None = None,
    reason: str | None = None,
    dry_run: bool = False,
    format: str = "table",
) -> int:
    """Look at the outbox in *database*, or change rows of it.

    :param action: one of :data:`ACTIONS`.
    :param using: aliases; empty means all. They need not be configured: rows of one that was removed can be purged.
    :param older_than: seconds.
    :returns: the exit code.
    """
    problems = _problems(action, older_than, reason, dry_run, format)
    if problems:
        return _complain(screen, ValueError("\n".join(problems)), MISUSED)
    try:
        outbox = Outbox(database)
        outbox.check_schema()
        if action == "status":
            _show(
                screen, [one for one in outbox.numbers() if not using or one.alias in using], format
            )
            return DONE
        states = [State.DEAD] if action == "requeue" else [State.DEAD, State.DONE]
        rows = Filter(states, list(using) or None, older_than, reason)
        if dry_run:
            count = outbox.count(rows)
        else:
            count = outbox.requeue(rows) if action == "requeue" else outbox.purge(rows)
    except (SchemaMismatch, ValueError) as error:
        return _complain(screen, error, MISUSED)
    except database.errors as error:
        return _complain(screen, error, FAILED)
    finally:
        database.close()
    if format == "json":
        screen.write(as_json({"action": action, "dry_run": dry_run, "rows": count}))
    else:
        would = "would be " if dry_run else ""
        screen.write(f"{count} {'row' if count == 1 else 'rows'} {would}{action}d")
    return DONE


def _problems(
    action: str, older_than: float | None, reason: str | None, dry_run: bool, format: str
) -> list[str]:
    problems = []
    if action not in ACTIONS:
        problems.append(f"unknown action {action!r}: expected one of {', '.join(ACTIONS)}")
    if format not in FORMATS:
        problems.append(f"unknown format {format!r}: expected one of {', '.join(FORMATS)}")
    # Not with <, because NaN is not below 0 either.
    if older_than is not None and not older_than >= 0:
        problems.append(f"--older-than takes seconds from 0, not {older_than:g}")
    given = {"older-than": older_than is not None, "reason": reason is not None, "dry-run": dry_run}
    if action == "status":
        problems += [
            f"--{name} cannot be used with status" for name, there in given.items() if there
        ]
    return problems


def _show(screen: Screen, numbers: Sequence[AliasNumbers], format: str) -> None:
    if format == "json":
        screen.write(as_json({"action": "status", "aliases": [asdict(one) for one in numbers]}))
        return
    if not numbers:
        screen.write("the outbox is empty")
        return
    head = ("ALIAS", "WAITING", "OLDEST", "REFUSED", "DEAD", "DONE")
    rows = [
        (
            *(
                printable(one.alias),
                str(one.waiting),
                f"{one.oldest:.1f} s" if one.waiting else "-",
            ),
            *(str(one.refused), str(one.dead), str(one.done)),
        )
        for one in numbers
    ]
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    for kind, row in [
        ("head", head),
        *(("bad" if row[4] != "0" else "plain", row) for row in rows),
    ]:
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        screen.write(screen.paint(kind, "  ".join(cells)))


def _complain(screen: Screen, error: Exception, code: int) -> int:
    words: Any = str(error) if code == MISUSED else told(error)
    for line in words.splitlines():
        screen.complain(printable(line))
    return code
