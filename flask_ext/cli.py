"""``flask kombu-pools reset|status|ping``: arguments in, :func:`kombu_pools_ext.control.commands.run` does the rest."""

from __future__ import annotations

from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from kombu_pools_ext.control.commands import (
    ACTIONS,
    DEFAULT_TIMEOUT,
    DESCRIPTION,
    FORMATS,
    OPTIONS,
    run,
)

__all__ = ["commands"]

_STYLES: dict[str, dict[str, Any]] = {
    "head": {"bold": True},
    "good": {"fg": "green"},
    "bad": {"fg": "red"},
    "plain": {},
}

#: The group that ``init_app`` adds to an application's command line.
commands = AppGroup("kombu-pools", help=DESCRIPTION)


def _add(action: str) -> None:
    @commands.command(action, help=ACTIONS[action])
    @click.option("--using", multiple=True, metavar="ALIAS", help=OPTIONS["using"])
    @click.option("--format", type=click.Choice(FORMATS), default="table", help=OPTIONS["format"])
    @click.option(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help=OPTIONS["timeout"],
    )
    @click.pass_context
    def command(ctx: click.Context, using: tuple[str, ...], format: str, timeout: float) -> None:
        code = run(
            action,
            current_app.extensions["kombu_pools"],
            using=using,
            format=format,
            timeout=timeout,
            write=click.echo,
            complain=lambda line: click.echo(line, err=True),
            paint=lambda kind, line: click.style(line, **_STYLES[kind]),
        )
        ctx.exit(code)


for _action in ACTIONS:
    _add(_action)
