"""Adopt the application of a project, which may be made before or after the pools are configured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import celery

from ...aliases import Pools
from .adopting import adopt_unchecked, adoption_of

__all__ = ["adopt_project", "adoption_of", "default_app"]


def default_app(finalized: Any = None) -> Any:
    """Return the application that tasks of all threads belong to; ``None`` if there is none yet.

    Celery's own ``current_app`` would make one then.
    """
    return celery._state.default_app


def adopt_project(
    using: str,
    pools: Pools | Callable[[], Pools],
    find_app: Callable[[Any], Any] = default_app,
    *,
    then: Callable[[Any], None] | None = None,
) -> None:
    """Adopt the application of a project: now if there is one, else when it is finalized.

    Celery finalizes an application when its first task is used, and before a worker or beat begins. Whether its broker
    is that of the alias is looked at when it is used.

    :param using: the alias.
    :param pools: the pools that have the alias, or a function that returns them.
    :param find_app: returns the application, or ``None``; it gets the one that is being finalized.
    :param then: called with the adopted application when it is finalized, which is before any of its tasks is used.
    :raises CannotAdopt: if it cannot be adopted, whatever its broker is.
    """

    def adopt_it(finalized: Any = None) -> None:
        app = find_app(finalized)
        if app is not None and (finalized is None or finalized is app):
            adopt_unchecked(app, using, pools)
            if then is not None and app.finalized:
                then(app)

    adopt_it()
    celery._state.connect_on_app_finalize(adopt_it)
