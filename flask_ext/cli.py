"""``flask kombu-pools …``: the command line of :mod:`kombu_pools_ext.control.command_line` for Flask."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup, FlaskGroup

from kombu_pools_ext.control.command_line import (
    COMMANDS,
    DESCRIPTION,
    LIMIT,
    OPTIONS,
    Option,
    Screen,
    is_terminal,
    run,
)

__all__ = ["commands"]

_STYLES: dict[str, dict[str, Any]] = {
    "head": {"bold": True},
    "good": {"fg": "green"},
    "bad": {"fg": "red"},
    "plain": {},
}

#: The command group that ``init_app`` adds to an application.
commands = AppGroup("kombu-pools", help=DESCRIPTION)


def _declared(option: Option) -> Callable[[Any], Any]:
    """Return *option* as an option of Click."""
    name = f"--{option.name}"
    if option.metavar is None:
        return click.option(name, option.key, is_flag=True, help=option.description)
    if option.choices:
        return click.option(
            name,
            option.key,
            type=click.Choice(option.choices),
            default=option.default,
            help=option.description,
        )
    return click.option(
        name,
        option.key,
        type=option.kind,
        multiple=option.many,
        default=() if option.many else option.default,
        metavar=option.metavar,
        help=option.description,
    )


def _add(command: str) -> None:
    def carry_out(**given: Any) -> None:
        state = current_app.extensions["kombu_pools"]
        screen = Screen(
            write=click.echo,
            complain=lambda line: click.echo(line, err=True),
            paint=lambda kind, line: click.style(line, **_STYLES[kind]),
            draw=_drawing(err=False),
            hint=_drawing(err=True),
        )
        context = click.get_current_context()
        # A test or a view invokes the application's own group, which is not a FlaskGroup.
        is_program = isinstance(context.find_root().command, FlaskGroup)
        code = run(command, lambda: state.control, state, screen, is_program=is_program, **given)
        context.exit(code)

    for option in reversed(OPTIONS):
        if option.suits(command):
            carry_out = _declared(option)(carry_out)
    help, settings = COMMANDS[command], {}
    if command == "limit":
        # So that -1 is refused as a limit, and not as an unknown option.
        settings["ignore_unknown_options"] = True
        carry_out = click.argument("limit", type=int, metavar="N")(carry_out)
        help += f"\n\nN is {LIMIT.removeprefix('for limit: ')}."
    commands.command(command, help=help, context_settings=settings)(carry_out)


def _drawing(*, err: bool) -> Callable[[str], Any] | None:
    """Return a function that prints text unchanged; ``None`` if the stream is not a terminal."""
    if not is_terminal(sys.stderr if err else sys.stdout):
        return None
    return lambda text: click.echo(text, nl=False, err=err)


for _command in COMMANDS:
    _add(_command)
