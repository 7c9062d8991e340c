"""How many threads of a process serve requests, where that stands in a place that can be read."""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Threads", "known_threads"]


class Threads(NamedTuple):
    """A number of threads, and where it stands."""

    number: int
    source: str


def known_threads() -> Threads | None:
    """The threads of each process of the server: uWSGI's own word inside it, or what gunicorn would read.

    That is ``--threads`` in ``GUNICORN_CMD_ARGS``, else ``threads = …`` in ``gunicorn.conf.py`` of the current folder,
    which is read and not run. ``None`` if nothing is known: a command line that is not running cannot be seen.
    """
    return _uwsgi() or _gunicorn_environment() or _gunicorn_file()


def _uwsgi() -> Threads | None:
    # Only uWSGI itself can make this module.
    options = getattr(sys.modules.get("uwsgi"), "opt", None) or {}
    for name in ("threads", b"threads"):
        threads = _number(options.get(name))
        if threads is not None:
            return Threads(threads, "uWSGI's option threads")
    return None


def _gunicorn_environment() -> Threads | None:
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--threads")
    try:
        words = shlex.split(os.environ.get("GUNICORN_CMD_ARGS", ""))
        threads = _number(parser.parse_known_args(words)[0].threads)
    except (ValueError, argparse.ArgumentError):
        return None
    return None if threads is None else Threads(threads, "GUNICORN_CMD_ARGS")


def _gunicorn_file() -> Threads | None:
    try:
        body = ast.parse(Path("gunicorn.conf.py").read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return None
    threads = None
    for statement in body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            names = [one.id for one in statement.targets if isinstance(one, ast.Name)]
            if "threads" in names:
                threads = _number(statement.value.value)
    return None if threads is None else Threads(threads, "gunicorn.conf.py")


def _number(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None
