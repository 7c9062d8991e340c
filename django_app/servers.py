"""Find out how many threads of a process serve requests, as far as this can be read somewhere."""

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
    """A number of threads, and where it is set."""

    number: int
    source: str


def known_threads() -> Threads | None:
    """Return the number of threads in each process of the server; ``None`` if it is not known.

    Within uWSGI it is uWSGI's own option. For gunicorn it is ``--threads`` in ``GUNICORN_CMD_ARGS``, or else
    ``threads = …`` in ``gunicorn.conf.py`` of the current folder, which is read but not run.
    """
    return _uwsgi() or _gunicorn_environment() or _gunicorn_file()


def _uwsgi() -> Threads | None:
    # This module exists only within uWSGI.
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
