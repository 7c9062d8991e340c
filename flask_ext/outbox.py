"""The outbox of a Flask application: the database that it is in, and its commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from flask import current_app
from flask.cli import AppGroup

from kombu_pools_ext.control.command_line import MISUSED
from kombu_pools_ext.outbox import command_line

from .screen import declared, screen

if TYPE_CHECKING:
    from kombu_pools_ext.contrib.sqlalchemy import EngineDatabase

__all__ = ["ENGINE", "add_commands", "database_of"]

#: The key in ``app.config``: an engine of SQLAlchemy, or the URL of one.
ENGINE = "KOMBU_POOLS_OUTBOX"


def database_of(app: Any, bind: str | None = None) -> EngineDatabase:
    """Return the database of the outbox of *app*.

    It is that of ``KOMBU_POOLS_OUTBOX``, an engine or its URL; if that is not set, that of Flask-SQLAlchemy.

    :param bind: a bind key of Flask-SQLAlchemy; ``None`` is its default database.
    :raises ValueError: if there is no database, with what to do.
    """
    try:
        from sqlalchemy import Engine, create_engine

        from kombu_pools_ext.contrib.sqlalchemy import EngineDatabase
    except ModuleNotFoundError:
        raise ValueError(
            "the outbox of a Flask application needs SQLAlchemy: pip install 'kombu-pools-ext[sqlalchemy]'"
        ) from None
    given = app.config.get(ENGINE)
    if given is not None and bind is None:
        return EngineDatabase(given if isinstance(given, Engine) else create_engine(given))
    extension = app.extensions.get("sqlalchemy")
    engines = getattr(extension, "engines", None)
    if engines is None:
        raise ValueError(
            f"app {app.name!r} has no database for the outbox: set {ENGINE} to an engine of SQLAlchemy or its URL, or "
            "use Flask-SQLAlchemy"
        )
    if bind not in engines:
        known = ", ".join(repr(one) for one in engines)
        raise ValueError(f"Flask-SQLAlchemy has no database {bind!r}; it has {known}")
    return EngineDatabase(engines[bind])


_DATABASE = click.option(
    "--database", metavar="BIND", default=None, help="a bind key of Flask-SQLAlchemy"
)


def add_commands(commands: AppGroup) -> None:
    """Add ``relay`` and ``outbox`` to *commands*."""

    def relay(database: str | None, **given: Any) -> None:
        _run(database, lambda where, to: command_line.run_relay(_pools(), where, to, **given))

    for option in reversed(command_line.RELAY_OPTIONS):
        relay = declared(option)(relay)
    commands.command("relay", help=command_line.RELAY)(_DATABASE(relay))

    def outbox(action: str, database: str | None, **given: Any) -> None:
        _run(database, lambda where, to: command_line.run_outbox(action, where, to, **given))

    for option in reversed(command_line.OUTBOX_OPTIONS):
        outbox = declared(option)(outbox)
    outbox = click.argument("action", type=click.Choice(list(command_line.ACTIONS)))(
        _DATABASE(outbox)
    )
    actions = "\n\n".join(f"{name}: {text}." for name, text in command_line.ACTIONS.items())
    commands.command("outbox", help=f"{command_line.OUTBOX}\n\n{actions}")(outbox)


def _pools() -> Any:
    return current_app.extensions["kombu_pools"]


def _run(bind: str | None, command: Any) -> None:
    to = screen()
    context = click.get_current_context()
    try:
        database = database_of(current_app, bind)
    except ValueError as error:
        to.complain(str(error))
        context.exit(MISUSED)
    context.exit(command(database, to))
