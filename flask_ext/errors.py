"""Wrong settings, as Flask's command line tells them."""

from __future__ import annotations

from collections.abc import Iterable

import click

from kombu_pools_ext.errors import Problem, SettingsError

__all__ = ["PoolsImproperlyConfigured"]


class PoolsImproperlyConfigured(SettingsError, click.ClickException):
    """The configuration of an application is wrong; the text has a line for each problem, ``problems`` holds them all.

    Where an application is loaded for a command (``flask kombu-pools``, ``flask run`` or any other) the command prints
    them and ends with code 2, in place of a traceback.

    :param problems: in any order.
    :param name: of the key in ``app.config``.
    """

    #: Of ``flask``: what was given was not understood.
    exit_code = 2

    def __init__(self, problems: Iterable[Problem], name: str = "") -> None:
        super().__init__(problems, name)
        click.ClickException.__init__(self, "\n".join(map(self._line, self.problems)))
