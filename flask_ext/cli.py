"""``flask kombu-pools …``: arguments in, :func:`kombu_pools_ext.control.command_line.run` does the rest."""

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

#: The group that ``init_app`` adds to an application's command line.
commands = AppGroup("kombu-pools", help=DESCRIPTION)


def _declared(option: Option) -> Callable[[Any], Any]:
    """*option*, as Click has it."""
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
        # Not where a test, or a view, invokes the application's own group.
        is_program = isinstance(context.find_root().command, FlaskGroup)
        code = run(command, lambda: state.control, state, screen, is_program=is_program, **given)
        context.exit(code)

    for option in reversed(OPTIONS):
        if option.suits(command):
            carry_out = _declared(option)(carry_out)
    help, settings = COMMANDS[command], {}
    if command == "limit":
        # For -1 to be told that it is no limit, and not that it is no option.
        settings["ignore_unknown_options"] = True
        carry_out = click.argument("limit", type=int, metavar="N")(carry_out)
        help += f"\n\nN is {LIMIT.removeprefix('for limit: ')}."
    commands.command(command, help=help, context_settings=settings)(carry_out)


def _drawing(*, err: bool) -> Callable[[str], Any] | None:
    """What prints as it is; ``None`` where that is no terminal."""
    if not is_terminal(sys.stderr if err else sys.stdout):
        return None
    return lambda text: click.echo(text, nl=False, err=err)


for _command in COMMANDS:
    _add(_command)
