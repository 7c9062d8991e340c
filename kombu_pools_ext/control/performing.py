"""Carry out a request in this process, for all of its pools that belong to the project."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from ..aliases import Pools
from ..engine import fork
from ..errors import SettingsError, UnknownAlias
from ..masking import describe
from ..settings.problems import nearest
from . import local
from .answer import Answer
from .log import logger
from .process_info import this_process
from .project import Project
from .request import Request

__all__ = ["perform"]

#: The part of a time-out that is left for the answer to arrive, and the most seconds of it.
RESERVE, MOST_RESERVED = 0.1, 0.25


def perform(request: Request, project: Project) -> Answer:
    """Carry out *request* in this thread, whether or not it names this process.

    It never raises: failures are in the answer. If the process has several sets of aliases, such as two Flask
    applications, each alias is looked up in all of them.
    """
    process = this_process()
    began = time.monotonic()
    fork.child_begins()
    try:
        sets = project.pools_in_order()
        # A reload does not need the present settings, because it may be meant to repair them.
        reloads = request.command == "reload"
        parts = [(one, None) for one in sets] if reloads else _parts(sets, request.using)
        rows: list[dict[str, Any]] = []
        for pools, using in parts:
            elapsed = time.monotonic() - began
            rows += [asdict(row) for row in _run(request, project, pools, using, elapsed)]
    except (UnknownAlias, SettingsError) as error:
        return Answer(process, "failed", error=" ".join(str(error).split()))
    except Exception as error:
        # Its text is not sent, because it may contain a secret.
        logger.exception("control: %s failed", request.command)
        return Answer(
            process, "failed", error=f"{type(error).__name__}; see the log of that process"
        )
    done = all(row.get("ok", True) for row in rows)
    return Answer(process, "done" if done else "failed", tuple(rows))


def _parts(sets: Sequence[Pools], using: Sequence[str]) -> list[tuple[Pools, list[str] | None]]:
    """Return the sets of aliases that are concerned, each with the aliases; ``None`` means all of them.

    :raises UnknownAlias: for an alias that no set has.
    :raises SettingsError: if the settings of one set are wrong.
    """
    known = {alias: None for pools in sets for alias in pools.settings}
    if not using:
        return [(pools, None) for pools in sets if pools.settings]
    unknown = [alias for alias in dict.fromkeys(using) if alias not in known]
    if unknown:
        lines = [
            f"no pool is configured as {describe(one)}; {nearest(one, known, repr)}"
            for one in unknown
        ]
        raise UnknownAlias("; ".join(lines))
    parts: list[tuple[Pools, list[str] | None]] = []
    for pools in sets:
        aliases = [alias for alias in dict.fromkeys(using) if alias in pools.settings]
        if aliases:
            parts.append((pools, aliases))
    return parts


def _run(
    request: Request, project: Project, pools: Pools, using: list[str] | None, elapsed: float
) -> Sequence[local.Row]:
    match request.command:
        case "status":
            return local.status(pools, using)
        case "reset":
            return local.reset(
                pools,
                using,
                reason="command",
                timeout=_time_left(request, elapsed),
                force=request.force,
            )
        case "reload":
            broadcast = project.settings.broadcast
            return local.reload(
                pools,
                timeout=_time_left(request, elapsed),
                force=request.force,
                needed=() if broadcast is None else (broadcast,),
            )
        case "limit":
            return local.limit(pools, cast("int", request.limit), using)
        case "suspend":
            return local.suspend(pools, cast("Any", request.mode), using)
        case "resume":
            return local.resume(pools, using)
        case _:
            return local.ping(pools, using, _time_left(request, elapsed))


def _time_left(request: Request, elapsed: float) -> float:
    """Return the seconds that a command may still take."""
    reserve = min(request.timeout * RESERVE, MOST_RESERVED)
    return max(0.001, request.timeout - reserve - elapsed)
