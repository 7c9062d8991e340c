"""``python manage.py kombu_pools status|reset|reload|ping|limit|suspend|resume|relay|outbox``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper

from django_app import conf
from django_app.outbox import commands as of_the_outbox
from kombu_pools_ext.control import command_line

__all__ = ["Command"]

_OPTIONS = {option.name: option for option in command_line.OPTIONS}


class Command(BaseCommand):
    """The command line of :mod:`kombu_pools_ext.control.command_line` as a Django command."""

    help = command_line.DESCRIPTION
    # The command reports wrong settings of its own, and must work if those of other applications are wrong.
    requires_system_checks = ()
    _is_program = False

    def run_from_argv(self, argv: list[str]) -> None:
        """Run the command as a program, not by ``call_command()`` in a process that does other work."""
        self._is_program = True
        super().run_from_argv(argv)

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the command's arguments and options."""
        known = {**command_line.COMMANDS, **of_the_outbox.COMMANDS}
        commands = "; ".join(f"{name}: {text}" for name, text in known.items())
        parser.add_argument("command", choices=list(known), help=commands)
        parser.add_argument(
            "limit",
            nargs="?",
            type=of_the_outbox.limit_or_action,
            metavar="N | ACTION",
            default=None,
            help=f"{command_line.LIMIT}; {of_the_outbox.LIMIT_OR_ACTION}",
        )
        for option in command_line.OPTIONS:
            given: dict[str, Any] = {"dest": option.key, "help": option.description}
            if option.metavar is None:
                given["action"] = "store_true"
            elif option.choices:
                given |= {"choices": option.choices, "default": option.default}
            else:
                given |= {"metavar": option.metavar, "type": option.kind, "default": option.default}
            if option.many:
                given |= {"action": "append", "default": []}
            parser.add_argument(f"--{option.name}", **given)
        of_the_outbox.add_options(parser, _OPTIONS)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the command.

        :raises CommandError: if the exit code is not 0; ``returncode`` is the exit code.
        """
        complaints: list[str] = []
        screen = command_line.Screen(
            write=self._write,
            complain=complaints.append,
            paint=self._paint,
            draw=_drawing(self.stdout),
            hint=_drawing(self.stderr),
        )
        code = self._run(options["command"], options, screen)
        if code:
            raise CommandError("\n".join(complaints), returncode=code)

    def _run(self, command: str, options: dict[str, Any], screen: command_line.Screen) -> int:
        if wrong := of_the_outbox.problems(command, options, _OPTIONS):
            for line in wrong:
                screen.complain(line)
            return command_line.MISUSED
        if command in of_the_outbox.COMMANDS:
            return of_the_outbox.run(command, options, conf.pools, screen)
        return command_line.run(
            command,
            conf.control,
            conf.pools,
            screen,
            limit=options["limit"],
            is_program=self._is_program,
            **{option.key: options[option.key] for option in command_line.OPTIONS},
        )

    def _write(self, line: str) -> None:
        self.stdout.write(line)
        # Else a reader of a pipe would get the lines in blocks.
        self.stdout.flush()

    def _paint(self, kind: str, line: str) -> str:
        styles = {
            "head": self.style.MIGRATE_HEADING,
            "good": self.style.SUCCESS,
            "bad": self.style.ERROR,
        }
        painted: str = styles[kind](line) if kind in styles else line
        return painted


def _drawing(stream: OutputWrapper) -> Any:
    """Return a function that prints text on *stream* unchanged; ``None`` if it is not a terminal."""
    if not command_line.is_terminal(stream):
        return None

    def draw(text: str) -> None:
        stream.write(text, style_func=str, ending="")
        stream.flush()

    return draw
