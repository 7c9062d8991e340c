"""The commands of the outbox, ``relay`` and ``outbox ACTION``, as parts of ``manage.py kombu_pools``."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping
from typing import Any

from django.core.management.base import CommandParser
from django.db import DEFAULT_DB_ALIAS
from django.utils.connection import ConnectionDoesNotExist

from kombu_pools_ext.aliases import Pools
from kombu_pools_ext.control.command_line import MISUSED, Option, Screen
from kombu_pools_ext.outbox import command_line

from .database import own_connection

__all__ = ["COMMANDS", "LIMIT_OR_ACTION", "add_options", "limit_or_action", "problems", "run"]

#: What they do, by name.
COMMANDS: Mapping[str, str] = {"relay": command_line.RELAY, "outbox": command_line.OUTBOX}
#: The help of the second argument.
LIMIT_OR_ACTION = "for outbox: " + "; ".join(
    f"{name}: {text}" for name, text in command_line.ACTIONS.items()
)

_OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "relay": {one.name: one for one in command_line.RELAY_OPTIONS},
    "outbox": {one.name: one for one in command_line.OUTBOX_OPTIONS},
}


def limit_or_action(text: str) -> int | str:
    """Return the second argument of the command line: a number, or what to do with the outbox."""
    if text in command_line.ACTIONS:
        return text
    try:
        return int(text)
    except ValueError:
        actions = ", ".join(command_line.ACTIONS)
        raise ArgumentTypeError(
            f"{text!r} is neither a number, for limit, nor one of {actions}, for outbox"
        ) from None


def add_options(parser: CommandParser, taken: Mapping[str, Option]) -> None:
    """Add the options of both to *parser*, but for those that other commands have as well.

    :param taken: the options of other commands, by name.
    """
    group = parser.add_argument_group("of relay and outbox")
    for name, option in {**_OPTIONS["relay"], **_OPTIONS["outbox"]}.items():
        if name in taken:
            continue
        # Their defaults are those of the functions: None is how it is seen that one was not given.
        given: dict[str, Any] = {"dest": option.key, "default": None, "help": option.description}
        if option.metavar is None:
            given["action"] = "store_true"
        else:
            given |= {"metavar": option.metavar, "type": option.kind}
        group.add_argument(f"--{name}", **given)
    group.add_argument(
        "--database",
        metavar="ALIAS",
        default=None,
        help=f"alias of the database that the outbox is in (default: {DEFAULT_DB_ALIAS})",
    )


def problems(command: str, options: Mapping[str, Any], taken: Mapping[str, Option]) -> list[str]:
    """Return what is wrong with the arguments of *command*, whichever it is: what it does not take, and what it lacks.

    :param options: all that were parsed.
    :param taken: the options of other commands, by name.
    """
    found = [
        f"--{name} cannot be used with {command}" for name in _unsuitable(command, options, taken)
    ]
    second = options["limit"]
    if command == "outbox" and not isinstance(second, str):
        found.append(f"outbox takes one of {', '.join(command_line.ACTIONS)}")
    elif command == "relay" and second is not None:
        found.append(f"relay takes no argument, and got {second}")
    elif command not in COMMANDS and isinstance(second, str):
        found.append(f"{command} does not take {second!r}, which is for outbox")
    return found


def _unsuitable(
    command: str, options: Mapping[str, Any], taken: Mapping[str, Option]
) -> Iterator[str]:
    suitable = _OPTIONS.get(command)
    for name in {**_OPTIONS["relay"], **_OPTIONS["outbox"], "database": None}:
        if name in taken or options[name.replace("-", "_")] is None:
            continue
        if suitable is None or (name != "database" and name not in suitable):
            yield name
    if suitable is not None:
        for name, option in taken.items():
            default = option.default if option.metavar is not None else False
            given = options[option.key]
            if name not in suitable and given != ([] if option.many else default):
                yield name


def run(command: str, options: Mapping[str, Any], pools: Pools, screen: Screen) -> int:
    """Run *command*; return the exit code.

    :param options: all that were parsed.
    """
    given = {
        one.key: options[one.key]
        for one in _OPTIONS[command].values()
        if options[one.key] is not None
    }
    try:
        with own_connection(options["database"] or DEFAULT_DB_ALIAS) as database:
            if command == "relay":
                return command_line.run_relay(pools, database, screen, **given)
            return command_line.run_outbox(options["limit"], database, screen, **given)
    except ConnectionDoesNotExist as error:
        screen.complain(str(error))
        return MISUSED
