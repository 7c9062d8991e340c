"""The error for wrong settings. Flask's command line prints it as a message."""

from __future__ import annotations

from collections.abc import Iterable

import click

from kombu_pools_ext.errors import Problem, SettingsError

__all__ = ["PoolsImproperlyConfigured"]


class PoolsImproperlyConfigured(SettingsError, click.ClickException):
    """The configuration of an application is wrong. The text has a line for each problem, which ``problems`` lists.

    If an application is loaded for a command (``flask kombu-pools``, ``flask run`` or any other), the command prints
    the problems, and ends with code 2 and without a traceback.

    :param problems: all of them, in any order.
    :param name: the key in ``app.config``.
    """

    #: The exit code of ``flask`` for wrong usage.
    exit_code = 2

    def __init__(self, problems: Iterable[Problem], name: str = "") -> None:
        super().__init__(problems, name)
        click.ClickException.__init__(self, "\n".join(map(self._line, self.problems)))
