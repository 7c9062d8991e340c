"""The error for wrong settings, which Flask's command line prints as a message."""

from __future__ import annotations

from collections.abc import Iterable

import click

from kombu_pools_ext.errors import Problem, SettingsError

__all__ = ["PoolsImproperlyConfigured"]


class PoolsImproperlyConfigured(SettingsError, click.ClickException):
    """The configuration of an application is wrong; the text has a line for each problem, ``problems`` holds them all.

    If an application is loaded for a command (``flask kombu-pools``, ``flask run`` or any other), the command prints
    the problems and ends with code 2, without a traceback.

    :param problems: in any order.
    :param name: of the key in ``app.config``.
    """

    #: The exit code of ``flask`` for input that it does not understand.
    exit_code = 2

    def __init__(self, problems: Iterable[Problem], name: str = "") -> None:
        super().__init__(problems, name)
        click.ClickException.__init__(self, "\n".join(map(self._line, self.problems)))
