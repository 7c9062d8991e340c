"""The command lines' one implementation: the frameworks parse arguments, and this does the rest.

Exit codes: 0 it is done, 1 some pool or broker failed, 2 it could not be understood.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..aliases import Pools
from ..errors import UnknownAlias
from ..settings import SettingsError
from . import local

__all__ = ["ACTIONS", "DEFAULT_TIMEOUT", "DESCRIPTION", "FORMATS", "OPTIONS", "run"]

DESCRIPTION = (
    "The broker connection pools of this process: look at them, reset them, ping their brokers."
)

#: What can be done, each with its description.
ACTIONS: Mapping[str, str] = {
    "status": "show each pool's connections and totals; connects to nothing",
    "reset": "close and rebuild the pools: idle connections now, lent ones when they come back",
    "ping": "make a round trip to each broker; exit code 1 if one fails",
}

#: The options, each with its description.
OPTIONS: Mapping[str, str] = {
    "using": "alias of a pool, may be repeated; all pools by default",
    "format": "table, or json for one JSON document",
    "timeout": "seconds that a ping may take, connecting included (default: 5)",
}

FORMATS = ("table", "json")

#: Of a ping, in seconds.
DEFAULT_TIMEOUT = 5.0

#: Columns of the status table: head, and name of the number.
_COLUMNS = {
    "LIMIT": "limit",
    "IDLE": "idle",
    "LENT": "lent",
    "OPENING": "opening",
    "WAITING": "waiting",
    "ACQUIRES": "acquires",
    "TIMEOUTS": "timeouts",
    "REFUSED": "refused",
    "OPENED": "opened",
}


def run(
    action: str,
    pools: Pools,
    *,
    using: Sequence[str] = (),
    format: str = "table",
    timeout: float = DEFAULT_TIMEOUT,
    write: Callable[[str], Any],
    complain: Callable[[str], Any] | None = None,
    paint: Callable[[str, str], str] = lambda kind, line: line,
) -> int:
    """Carry out a command on the pools of this process, and print what came of it.

    :param action: a key of :data:`ACTIONS`.
    :param using: aliases; all if there are none.
    :param format: one of :data:`FORMATS`.
    :param timeout: of a ping, in seconds.
    :param write: prints what it is called with, and ends the line.
    :param complain: prints what went wrong, for the standard error; by default *write* does, but for failures
        that the rows tell already.
    :param paint: may colour a line of a table: called with ``"head"``, ``"good"``, ``"bad"`` or ``"plain"``, and the
        line.
    :returns: the exit code.
    """
    try:
        if action not in ACTIONS:
            raise ValueError(f"unknown action {action!r}: expected one of {', '.join(ACTIONS)}")
        if format not in FORMATS:
            raise ValueError(f"unknown format {format!r}: expected one of {', '.join(FORMATS)}")
        rows = _rows(action, pools, using, timeout)
    except (UnknownAlias, SettingsError, TypeError, ValueError) as error:
        (complain or write)(str(error))
        return 2
    if format == "json":
        write(json.dumps({"action": action, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        for kind, line in _table(action, rows):
            write(paint(kind, line))
    failed = [row.alias for row in rows if not getattr(row, "ok", True)]
    if failed and complain is not None:
        complain(f"{action} failed for {len(failed)} of {len(rows)}: {', '.join(failed)}")
    return 1 if failed else 0


def _rows(action: str, pools: Pools, using: Sequence[str], timeout: float) -> Sequence[local.Row]:
    names = list(dict.fromkeys(using)) or None
    if action == "status":
        return local.status(pools, names)
    if action == "reset":
        return local.reset(pools, names, reason="command")
    return local.ping(pools, names, timeout)


def _table(action: str, rows: Sequence[Any]) -> list[tuple[str, str]]:
    """Lines, each with its kind."""
    if not rows:
        return [("plain", "no pools are configured")]
    if action == "reset":
        return [("good" if row.ok else "bad", _printable(_reset_line(row))) for row in rows]
    if action == "ping":
        cells = [
            [
                row.alias,
                row.broker,
                f"ok in {row.seconds * 1000:.1f} ms" if row.ok else f"failed: {row.error}",
            ]
            for row in rows
        ]
        kinds = ["good" if row.ok else "bad" for row in rows]
        return list(zip(kinds, _aligned(cells, numbers=False), strict=True))
    head = ["ALIAS", *_COLUMNS, "CLOSED", "STATE", "PROCESS", "BROKER"]
    cells = [
        [
            row.alias,
            *("∞" if value is None else str(value) for value in _numbers(row)),
            str(sum(row.closed.values())),
            _state(row),
            f"{row.host}:{row.pid}",
            row.broker,
        ]
        for row in rows
    ]
    lines = _aligned([head, *cells], numbers=True)
    kinds = ["plain" if _state(row) == "ok" else "bad" for row in rows]
    return [("head", lines[0]), *zip(kinds, lines[1:], strict=True)]


def _state(row: local.StatusRow) -> str:
    """What keeps a pool from lending, in a few words."""
    states = []
    if row.suspended:
        states.append("suspended")
    if row.outage is not None:
        states.append(f"down for {row.outage:.0f} s")
    if row.blocked is not None:
        states.append(f"blocked: {row.blocked}")
    return ", ".join(states) or "ok"


def _numbers(row: local.StatusRow) -> list[int | None]:
    return [getattr(row, name) for name in _COLUMNS.values()]


def _reset_line(row: local.ResetRow) -> str:
    if not row.ok:
        return f"{row.alias}: failed: {row.error}"
    later = f", {row.lent} lent will be closed when they come back" if row.lent else ""
    if row.lent == 1:
        later = ", 1 lent will be closed when it comes back"
    connections = "connection" if row.closed == 1 else "connections"
    return f"{row.alias}: closed {row.closed} idle {connections}{later}"


def _aligned(table: Sequence[Sequence[str]], *, numbers: bool) -> list[str]:
    """The rows as lines; with *numbers*, the columns between the first and the last three are aligned to the right."""
    table = [[_printable(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        last = len(row) - 1
        cells = [
            cell.rjust(width) if numbers and 0 < place < last - 2 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _printable(text: str) -> str:
    """*text* without control characters, which an alias or a broker's answer might bring to a terminal."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
