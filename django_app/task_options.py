"""The ``OPTIONS`` of a :class:`~django_app.tasks.CeleryBackend`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import celery
from django.db import connections as databases
from django.utils.module_loading import import_string

from kombu_pools_ext.contrib.celery import adopt, adoption_of
from kombu_pools_ext.contrib.celery.project import default_app
from kombu_pools_ext.settings.problems import did_you_mean

from . import conf

__all__ = ["TaskOptions"]

_KNOWN = ("app", "using", "on_commit", "results")


class TaskOptions:
    """Checked options; what is wrong is told by :meth:`problems`, and raised by nobody before the first use.

    :param options: the dict in ``TASKS``.
    """

    def __init__(self, options: Any) -> None:
        self._given = options
        self._options: Mapping[str, Any] = options if isinstance(options, Mapping) else {}

    @property
    def database(self) -> str | None:
        """The alias of the database whose commit is waited for; ``None`` if tasks are sent at once."""
        on_commit = self._options.get("on_commit", False)
        return "default" if on_commit is True else on_commit or None

    @property
    def wants_results(self) -> bool:
        """Whether results are stored, if there is a result backend that can."""
        return bool(self._options.get("results", True))

    @property
    def using(self) -> str | None:
        """The alias that the application is to publish over; ``None`` if ``KOMBU_POOLS_CELERY`` says it."""
        return self._options.get("using")

    def app(self) -> Any:
        """Return the adopted Celery application.

        :raises LookupError: if there is none, it is not adopted, or there is no such alias; the text says what to do.
        :raises ImportError: if its path is wrong.
        :raises CannotAdopt: if it cannot be adopted.
        """
        path = self._options.get("app")
        # Celery's own paths may have a colon.
        app = default_app() if path is None else import_string(path.replace(":", "."))
        if app is None:
            raise LookupError(
                "there is no Celery app; import it in the __init__.py of the project, as Celery's documentation has "
                'it, or write its path into OPTIONS["app"]'
            )
        if not isinstance(app, celery.Celery):
            raise LookupError(f"{path!r} is {type(app).__name__}, not a celery.Celery")
        if self.using is not None:
            conf.pools.settings_of(self.using)
            adopt(app, self.using, pools=conf.project_pools)
        if adoption_of(app) is None:
            raise LookupError(
                f"the Celery app {app.main!r} publishes over pools of its own; set {conf.CELERY}, or write the alias "
                'into OPTIONS["using"]'
            )
        return app

    def problems(self) -> Iterator[str]:
        """Yield what is wrong, without looking for the application."""
        if not isinstance(self._given, Mapping):
            yield f"OPTIONS must be a dict, not {type(self._given).__name__}"
        for name in self._options:
            if name not in _KNOWN:
                hint = did_you_mean(str(name), _KNOWN) or f"known: {', '.join(_KNOWN)}"
                yield f"OPTIONS[{name!r}] is unknown; {hint}"
        for name in ("app", "using"):
            value = self._options.get(name)
            if value is not None and not isinstance(value, str):
                yield f"OPTIONS[{name!r}] must be text, not {type(value).__name__}"
        if not isinstance(self._options.get("results", True), bool):
            yield 'OPTIONS["results"] must be True or False'
        on_commit = self._options.get("on_commit", False)
        if not isinstance(on_commit, bool) and on_commit not in databases:
            yield (
                'OPTIONS["on_commit"] must be True, False or the alias of a database, not '
                f"{on_commit!r}"
            )
