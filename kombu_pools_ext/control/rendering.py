"""Render answers for people and programs: tables, lines and JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..relay_report import MOST_COUNTED
from .answer import Answer, Answers
from .process_info import Process

__all__ = ["Line", "answer_table", "as_json", "failures", "printable", "process_table"]

#: The kind of a line (``"head"``, ``"good"``, ``"bad"`` or ``"plain"``) and the line.
Line = tuple[str, str]

#: The columns with numbers in the status table: title, and key in a row.
_NUMBERS = {
    "LIMIT": "limit",
    "IDLE": "idle",
    "LENT": "lent",
    "OPENING": "opening",
    "WAITING": "waiting",
    "ACQUIRES": "acquires",
    "TIMEOUTS": "timeouts",
    "REFUSED": "refused",
    "OPENED": "opened",
    "CLOSED": "closed",
    "TASKS": "tasks",
}
#: Those of a process in which a relay runs: title, and key in the row's ``relay``.
_RELAY = {"DELIVERED": "delivered", "RATE": "rate", "ROWS": "rows", "LAG": "lag", "DEAD": "dead"}
#: The text of an empty cell.
_NOTHING = "–"
#: The most processes that a line names; the others are only counted.
_MOST_NAMED = 10


def answer_table(answers: Answers, now: float | None = None) -> list[Line]:
    """Return a table of what each process did, with a row for each of its pools.

    :param now: in seconds since 1970.
    """
    if answers.request.command == "status":
        return _status(answers.answers, time.time() if now is None else now)
    rows: list[list[str]] = []
    kinds: list[str] = []
    for answer in answers.answers:
        for row in answer.rows:
            good = row.get("ok", True)
            rows.append(
                [*_process_cells(answer.process), str(row.get("alias")), _outcome(answers, row)]
            )
            kinds.append("good" if good else "bad")
        if (outcome := _process_outcome(answer)) is not None:
            rows.append([*_process_cells(answer.process), _NOTHING, outcome])
            kinds.append("plain" if answer.ok else "bad")
    return list(zip(kinds, _aligned(rows), strict=True))


def process_table(processes: Iterable[Process], now: float | None = None) -> list[Line]:
    """Return a table of processes.

    :param now: in seconds since 1970.
    """
    now = time.time() if now is None else now
    rows = [[*_process_cells(one), _uptime(one, now), one.version or _NOTHING] for one in processes]
    if not rows:
        return []
    head, *lines = _aligned([["PROCESS", "SERVER", "UP", "VERSION"], *rows], numbers=(2,))
    return [("head", head), *(("plain", line) for line in lines)]


def failures(answers: Answers) -> list[str]:
    """Return lines that say what failed; none if nothing did."""
    command, count = answers.request.command, len(answers.answers)
    found = [printable(problem) for problem in answers.problems]
    if failed := [_process_name(one.process) for one in answers.answers if one.outcome == "failed"]:
        found.append(
            f"{command} failed in {len(failed)} of {_processes(count)}: {_first_names(failed)}"
        )
    if silent := [_process_name(one.process) for one in answers.answers if one.outcome == "silent"]:
        within = f"within {answers.request.timeout:g} s"
        found.append(
            f"{len(silent)} of {_processes(count)} did not answer {within}: {_first_names(silent)}"
        )
    return found


def as_json(document: Mapping[str, Any], *, in_a_line: bool = False) -> str:
    """Return *document* as JSON, in ASCII."""
    return json.dumps(document, indent=None if in_a_line else 2, default=asdict)


def printable(text: str) -> str:
    """Return *text* with control characters escaped; an alias or a broker's answer may contain some."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _status(answers: Sequence[Answer], now: float) -> list[Line]:
    numbers = dict(_NUMBERS)
    if not any(row.get("tasks") is not None for answer in answers for row in answer.rows):
        # Without Celery there are none.
        del numbers["TASKS"]
    relay = _RELAY if any(row.get("relay") for answer in answers for row in answer.rows) else {}
    head = ["PROCESS", "SERVER", "UP", "ALIAS", *numbers, *relay, "STATE", "BROKER"]
    rows, kinds = [], []
    for answer in answers:
        cells = [*_process_cells(answer.process), _uptime(answer.process, now)]
        for row in answer.rows:
            state = _state(row)
            rows.append([
                *cells, str(row.get("alias")), *(_number(row, name) for name in numbers.values()),
                *(_told_by_relay(row, name) for name in relay.values()), state,
                str(row.get("broker", _NOTHING)),
            ])  # fmt: skip
            kinds.append("plain" if state == "ok" else "bad")
        if (outcome := _process_outcome(answer)) is not None:
            rows.append([*cells, *[_NOTHING] * (len(numbers) + len(relay) + 1), outcome, ""])
            kinds.append("plain" if answer.ok else "bad")
    if not rows:
        return []
    lines = _aligned([head, *rows], numbers=(2, *range(4, 4 + len(numbers) + len(relay))))
    return [("head", lines[0]), *zip(kinds, lines[1:], strict=True)]


def _process_outcome(answer: Answer) -> str | None:
    """Return what there is to say about a process besides its rows; ``None`` if nothing."""
    if answer.outcome == "silent":
        return f"silent: {answer.error or 'no answer in time'}; it may carry it out later"
    if answer.error is not None:
        return f"failed: {answer.error}"
    return None if answer.rows else "no pools"


def _number(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name, _NOTHING)
    if name == "closed" and isinstance(value, Mapping):
        value = sum(value.values())
    if value is None:
        return _NOTHING if name == "tasks" else "∞"
    return str(value)


def _told_by_relay(row: Mapping[str, Any], name: str) -> str:
    told = row.get("relay") or {}
    value = told.get(name)
    if value is None:
        return _NOTHING
    if name in ("rows", "dead") and value >= MOST_COUNTED:
        return f"{MOST_COUNTED}+"
    return {"rate": f"{value:.0f}/s", "lag": f"{value:.1f} s"}.get(name, str(value))


def _state(row: Mapping[str, Any]) -> str:
    """Return why a pool does not lend, in a few words; ``"ok"`` if it does."""
    states = []
    if row.get("suspended"):
        states.append("suspended")
    if row.get("outage") is not None:
        states.append(f"down for {row['outage']:.0f} s")
    if row.get("blocked") is not None:
        states.append(f"blocked: {row['blocked']}")
    return ", ".join(states) or "ok"


def _outcome(answers: Answers, row: Mapping[str, Any]) -> str:
    """Return what happened to one pool."""
    if not row.get("ok", True):
        return _failed(row)
    if answers.request.command == "suspend":
        return _suspended(row, answers.request.mode)
    return _SUCCESS[answers.request.command](row)


def _reset(row: Mapping[str, Any]) -> str:
    closed, lent = row.get("closed", 0), row.get("lent", 0)
    if row.get("shared_with") is not None:
        return f"shares the pool of {row['shared_with']}"
    if not closed and not lent:
        return "nothing to close: no connection was open"
    connections = "connection" if closed == 1 else "connections"
    return f"closed {closed} idle {connections}{_closed_later(lent)}"


def _reloaded(row: Mapping[str, Any]) -> str:
    change, closed, lent = row.get("change"), row.get("closed", 0), row.get("lent", 0)
    if change == "stayed":
        return "unchanged"
    if not closed and not lent:
        return str(change)
    text = f"{change}: {_reset(row)}"
    return f"{text}; using it fails from now on" if change == "gone" else text


def _limited(row: Mapping[str, Any]) -> str:
    limit, lent = row.get("limit"), row.get("lent", 0)
    over = max(0, lent - limit) if isinstance(limit, int) else 0
    if "before" in row and row["before"] == limit:
        return f"limit {_number(row, 'limit')}, as before{_closed_later(over)}"
    return f"limit {_number(row, 'limit')}, was {_number(row, 'before')}{_closed_later(over)}"


def _closed_later(lent: int) -> str:
    if not lent:
        return ""
    return f", {lent} lent will be closed when {'it comes' if lent == 1 else 'they come'} back"


def _suspended(row: Mapping[str, Any], mode: str) -> str:
    before = row.get("before")
    if before is None:
        return "suspended"
    callers = (
        "" if before == mode else f"; callers now {'wait' if mode == 'wait' else 'fail at once'}"
    )
    return f"was suspended already{callers}"


def _resumed(row: Mapping[str, Any]) -> str:
    # A process of an older version does not send it.
    return "was not suspended" if row.get("before", "") is None else "resumed"


def _failed(row: Mapping[str, Any]) -> str:
    """Return why it failed, with the broker's URL, because the user in the URL may be the reason."""
    error, broker = str(row.get("error")), str(row.get("broker", ""))
    # The error may name the broker too.
    return f"failed: {error.replace(f'pool {broker!r}: ', '')}  {broker}".rstrip()


#: By command, the text for a pool in which it succeeded.
_SUCCESS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "reset": _reset,
    "reload": _reloaded,
    "ping": lambda row: f"ok in {row['seconds'] * 1000:.1f} ms  {row.get('broker', '')}",
    "limit": _limited,
    "resume": _resumed,
}


def _process_cells(process: Process) -> list[str]:
    server = " ".join(filter(None, [process.server, process.kind]))
    return [_process_name(process), server or _NOTHING]


def _process_name(process: Process) -> str:
    return printable(f"{process.host}:{process.pid}")


def _uptime(process: Process, now: float) -> str:
    """Return how long the process has been running, roughly."""
    if not process.started:
        return _NOTHING
    seconds = max(0.0, now - process.started)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _processes(count: int) -> str:
    return f"{count} process{'' if count == 1 else 'es'}"


def _first_names(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMED
    more = [f"{rest} more"] if rest > 0 else []
    return ", ".join([*names[:_MOST_NAMED], *more])


def _aligned(table: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> list[str]:
    """Return the rows as lines; the columns *numbers* are aligned to the right."""
    table = [[printable(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
