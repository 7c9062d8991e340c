"""``flask kombu-pools …``: the command line of :mod:`kombu_pools_ext.control.command_line` for Flask."""

from __future__ import annotations

from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup, FlaskGroup

from kombu_pools_ext.control.command_line import COMMANDS, DESCRIPTION, LIMIT, OPTIONS, run

from .outbox import add_commands
from .screen import declared, screen

__all__ = ["commands"]

#: The command group that ``init_app`` adds to an application.
commands = AppGroup("kombu-pools", help=DESCRIPTION)


def _add(command: str) -> None:
    def carry_out(**given: Any) -> None:
        state = current_app.extensions["kombu_pools"]
        context = click.get_current_context()
        # A test or a view invokes the application's own group, which is not a FlaskGroup.
        is_program = isinstance(context.find_root().command, FlaskGroup)
        code = run(command, lambda: state.control, state, screen(), is_program=is_program, **given)
        context.exit(code)

    for option in reversed(OPTIONS):
        if option.suits(command):
            carry_out = declared(option)(carry_out)
    help, settings = COMMANDS[command], {}
    if command == "limit":
        # So that -1 is refused as a limit, and not as an unknown option.
        settings["ignore_unknown_options"] = True
        carry_out = click.argument("limit", type=int, metavar="N")(carry_out)
        help += f"\n\nN is {LIMIT.removeprefix('for limit: ')}."
    commands.command(command, help=help, context_settings=settings)(carry_out)


for _command in COMMANDS:
    _add(_command)
add_commands(commands)
