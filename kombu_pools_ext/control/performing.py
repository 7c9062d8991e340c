"""Doing what this process is told, with all of its pools that belong to the project."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from ..aliases import Pools
from ..engine import fork
from ..engine.weakly import snapshot
from ..errors import SettingsError, UnknownAlias
from ..masking import describe
from ..settings.problems import nearest
from . import local
from .answer import Answer
from .process import here
from .project import Project
from .request import Request

__all__ = ["perform", "pools_in_order"]

logger = logging.getLogger("kombu_pools_ext.control")

#: What is kept of a time-out for the answer to arrive in: this part of it, and at most so many seconds.
RESERVE, MOST_RESERVED = 0.1, 0.25


def perform(request: Request, project: Project) -> Answer:
    """Do what *request* tells, in this thread. Whom it names is the caller's to heed.

    Never raises: what goes wrong is in the answer. Of several sets of aliases (two Flask apps) each does what it can;
    an alias that one does not know may be another's.
    """
    process = here()
    began = time.monotonic()
    fork.child_begins()
    try:
        every = pools_in_order(project)
        # The present settings are not read, because a reload may be meant to repair them.
        reloads = request.command == "reload"
        parts = [(one, None) for one in every] if reloads else _parts(every, request.using)
        rows: list[dict[str, Any]] = []
        for pools, using in parts:
            elapsed = time.monotonic() - began
            rows += [asdict(row) for row in _do(request, project, pools, using, elapsed)]
    except (UnknownAlias, SettingsError) as error:
        return Answer(process, "failed", error=" ".join(str(error).split()))
    except Exception as error:
        # Not its text, which may hold whatever somebody has put there.
        logger.exception("control: %s failed", request.command)
        return Answer(
            process, "failed", error=f"{type(error).__name__}; the log of that process tells more"
        )
    done = all(row.get("ok", True) for row in rows)
    return Answer(process, "done" if done else "failed", tuple(rows))


def pools_in_order(project: Project) -> list[Pools]:
    """The sets of aliases of *project* in this process, always in the same order."""
    return sorted(snapshot(lambda: project.pools), key=lambda pools: (pools.name, id(pools)))


def _parts(every: Sequence[Pools], using: Sequence[str]) -> list[tuple[Pools, list[str] | None]]:
    """Who does it for which aliases; ``None`` is all of them.

    :raises UnknownAlias: for one that nobody knows, before anything is done.
    :raises SettingsError: if the settings of one are wrong, before anything is done.
    """
    known = {alias: None for pools in every for alias in pools.settings}
    if not using:
        return [(pools, None) for pools in every if pools.settings]
    unknown = [alias for alias in dict.fromkeys(using) if alias not in known]
    if unknown:
        told = [
            f"no pool is configured as {describe(one)}; {nearest(one, known, repr)}"
            for one in unknown
        ]
        raise UnknownAlias("; ".join(told))
    parts: list[tuple[Pools, list[str] | None]] = []
    for pools in every:
        its = [alias for alias in dict.fromkeys(using) if alias in pools.settings]
        if its:
            parts.append((pools, its))
    return parts


def _do(
    request: Request, project: Project, pools: Pools, using: list[str] | None, elapsed: float
) -> Sequence[local.Row]:
    match request.command:
        case "status":
            return local.status(pools, using)
        case "reset":
            return local.reset(
                pools, using, reason="command", timeout=_left(request, elapsed), force=request.force
            )
        case "reload":
            broadcast = project.settings.broadcast
            return local.reload(
                pools,
                timeout=_left(request, elapsed),
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
            return local.ping(pools, using, _left(request, elapsed))


def _left(request: Request, elapsed: float) -> float:
    """Seconds for something that may last until the time-out."""
    reserve = min(request.timeout * RESERVE, MOST_RESERVED)
    return max(0.001, request.timeout - reserve - elapsed)
