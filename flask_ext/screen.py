"""The options and the output of our commands, in Click's terms."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from kombu_pools_ext.control.command_line import Option, Screen, is_terminal

__all__ = ["declared", "screen"]

_STYLES: dict[str, dict[str, Any]] = {
    "head": {"bold": True},
    "good": {"fg": "green"},
    "bad": {"fg": "red"},
    "plain": {},
}


def declared(option: Option) -> Callable[[Any], Any]:
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


def screen() -> Screen:
    """Return the terminal, or what Click has in its place."""
    return Screen(
        write=click.echo,
        complain=lambda line: click.echo(line, err=True),
        paint=lambda kind, line: click.style(line, **_STYLES[kind]),
        draw=_drawing(err=False),
        hint=_drawing(err=True),
    )


def _drawing(*, err: bool) -> Callable[[str], Any] | None:
    """Return a function that prints text unchanged; ``None`` if the stream is not a terminal."""
    if not is_terminal(sys.stderr if err else sys.stdout):
        return None
    return lambda text: click.echo(text, nl=False, err=err)
