"""``python manage.py kombu_pools status|reset|ping``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from django_app.conf import pools
from kombu_pools_ext.control import commands

__all__ = ["Command"]


class Command(BaseCommand):
    """The command line, in Django's manner; :mod:`kombu_pools_ext.control.commands` does the work."""

    help = commands.DESCRIPTION
    # It tells what is wrong with the settings itself, and must work where another application's are.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare action and options."""
        actions = "; ".join(f"{name}: {text}" for name, text in commands.ACTIONS.items())
        parser.add_argument("action", choices=list(commands.ACTIONS), help=actions)
        parser.add_argument(
            "--using",
            action="append",
            default=[],
            metavar="ALIAS",
            help=commands.OPTIONS["using"],
        )
        parser.add_argument(
            "--format",
            choices=commands.FORMATS,
            default="table",
            help=commands.OPTIONS["format"],
        )
        parser.add_argument(
            "--timeout",
            type=float,
            default=commands.DEFAULT_TIMEOUT,
            metavar="SECONDS",
            help=commands.OPTIONS["timeout"],
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run it.

        :raises CommandError: with the exit code as its ``returncode``, unless that is 0.
        """
        complaints: list[str] = []
        code = commands.run(
            options["action"],
            pools,
            using=options["using"],
            format=options["format"],
            timeout=options["timeout"],
            write=self.stdout.write,
            complain=complaints.append,
            paint=self._paint,
        )
        if code:
            raise CommandError("\n".join(complaints), returncode=code)

    def _paint(self, kind: str, line: str) -> str:
        styles = {
            "head": self.style.MIGRATE_HEADING,
            "good": self.style.SUCCESS,
            "bad": self.style.ERROR,
        }
        painted: str = styles[kind](line) if kind in styles else line
        return painted
