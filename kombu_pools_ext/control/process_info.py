"""Describe this process and others that have pools: name, machine, number, server."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..engine import fork
from ..engine.loaded import loaded
from .request import Request

__all__ = ["Process", "this_process", "unknown_names"]

#: Servers by a module that only they load, the more specific ones first.
_SERVERS = {
    "uwsgi": "uwsgi",
    "gunicorn.arbiter": "gunicorn",
    "celery.apps.worker": "celery",
    "celery.apps.beat": "celery",
    "uvicorn.server": "uvicorn",
    "hypercorn.run": "hypercorn",
    "daphne.server": "daphne",
    "granian.server": "granian",
    "waitress.server": "waitress",
    "mod_wsgi.server": "mod_wsgi",
}
#: The kinds of gunicorn's workers by their module.
_GUNICORN_WORKERS = {
    "gunicorn.workers.ggevent": "gevent worker",
    "gunicorn.workers.geventlet": "eventlet worker",
    "gunicorn.workers.gthread": "gthread worker",
    "gunicorn.workers.gtornado": "tornado worker",
    "uvicorn.workers": "uvicorn worker",
    "uvicorn_worker": "uvicorn worker",
}

#: The types of JSON values that are valid for a field's type.
_TYPES: Mapping[str, Any] = {"str": str, "int": int, "float": (int, float)}


@dataclass(frozen=True)
class Process:
    """A process that has pools."""

    #: A name that no other process has or had.
    name: str
    #: The name of its machine or container.
    host: str
    #: Its process number there. A process in another container may have the same one.
    pid: int
    #: The server that it belongs to, such as ``"gunicorn"``, ``"uwsgi"`` or ``"celery"``, or the program's name.
    server: str = ""
    #: Its role there, such as ``"worker"``, ``"gevent worker"`` or ``"master"``.
    kind: str = ""
    #: When it started, in seconds since 1970.
    started: float = 0.0
    #: The version of this library.
    version: str = ""

    @classmethod
    def from_dict(cls, given: Any) -> Process:
        """Make a process of the plain data that it sent. Unknown keys come from a newer version, and are ignored.

        :raises ValueError: if *given* does not describe a process.
        """
        types = {str(one.name): _TYPES[str(one.type)] for one in fields(cls)}
        known = (
            {key: given[key] for key in given if key in types} if isinstance(given, Mapping) else {}
        )
        if not {"name", "host", "pid"} <= known.keys() or not all(
            isinstance(value, types[key]) and not isinstance(value, bool)
            for key, value in known.items()
        ):
            raise ValueError("it does not say which process it is")
        return cls(**known)

    def is_named(self, request: Request) -> bool:
        """Return whether *request* is for this process."""
        return (not request.hosts or self.host in request.hosts) and (
            not request.processes or any(map(self.is_called, request.processes))
        )

    def is_called(self, name: str) -> bool:
        """Return whether *name* is the number or the name of this process."""
        return name in (str(self.pid), self.name)

    @property
    def token(self) -> str:
        """The eight hexadecimal digits at the end of its name, which make the name unique."""
        return self.name.rpartition(":")[2]

    @property
    def sort_key(self) -> tuple[str, int, str]:
        """The key to sort processes by: machine and number."""
        return self.host, self.pid, self.name


def unknown_names(request: Request, processes: Collection[Process]) -> tuple[list[str], list[str]]:
    """Return the names of machines, and of processes, in *request* that fit none of *processes*."""
    hosts = [name for name in request.hosts if all(one.host != name for one in processes)]
    numbers = [
        name for name in request.processes if not any(one.is_called(name) for one in processes)
    ]
    return hosts, numbers


#: By process number, because a fork that skips Python's hooks does not clear it.
_known: dict[int, Process] = {}


def this_process() -> Process:
    """Return the description of this process. A forked child has its own."""
    pid = os.getpid()
    known = _known.get(pid)
    if known is not None:
        return known
    host = socket.gethostname()
    server, kind = _role()
    process = Process(
        name=f"{host}:{pid}:{os.urandom(4).hex()}",
        host=host,
        pid=pid,
        server=server,
        kind=kind,
        started=round(_started(), 2),
        version=_version(),
    )
    # If two threads are the first ones at once, both get the same one.
    return _known.setdefault(pid, process)


def _version() -> str:
    from .. import __version__

    return __version__


def _started() -> float:
    """Return when this process started, in seconds since 1970."""
    try:
        # The program's name is in parentheses, and may contain any character.
        fields = Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):  # pragma: no cover - not Linux
        return time.time()
    return time.time() - max(0.0, age)


def _role() -> tuple[str, str]:
    """Return the server that this process belongs to, and its role there."""
    server = next((name for module, name in _SERVERS.items() if module in sys.modules), "")
    if server == "uwsgi":
        return server, _with_greenlets(_uwsgi_kind(sys.modules["uwsgi"]))
    if server == "gunicorn":
        kind = next((k for module, k in _GUNICORN_WORKERS.items() if module in sys.modules), "")
        return server, (kind or "worker") if _is_forked() else "master"
    if server == "celery" and "celery.apps.worker" not in sys.modules:
        return server, "beat"
    if server == "celery":
        return server, _with_greenlets("prefork worker" if _is_child() else "worker")
    if server:
        return server, _with_greenlets("worker" if _is_child() else "server")
    return _program(), _with_greenlets("worker" if _is_child() else "")


def _uwsgi_kind(uwsgi: Any) -> str:
    if uwsgi.worker_id():
        return "worker"
    if uwsgi.masterpid() in (0, os.getpid()):
        return "master"
    return "mule" if getattr(uwsgi, "mule_id", int)() else "spooler"


def _with_greenlets(kind: str) -> str:
    """Return *kind*, prefixed by the library that replaces threads with greenlets in this process, if any."""
    gevent: Any = loaded("gevent.monkey")
    eventlet: Any = loaded("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        return f"gevent {kind}".strip()
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return f"eventlet {kind}".strip()
    return kind


def _is_child() -> bool:
    """Return whether multiprocessing or billiard started this process."""
    for module in ("multiprocessing.process", "billiard.process"):
        process: Any = loaded(module)
        if process is not None and getattr(process.current_process(), "_parent_pid", None):
            return True
    return False


def _is_forked() -> bool:
    """Return whether the parent process runs the same program, as the parent of a forked worker does."""
    return _command("self") == _command(str(os.getppid()))


def _command(pid: str) -> bytes:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # pragma: no cover - not Linux
        return b""
    # gunicorn changes the titles of its processes if it can.
    return re.sub(rb"^(gunicorn: )(master|worker) ", rb"\1", line).rstrip(b"\0")


def _program() -> str:
    """Return the program's name, with the command of a framework, but no other arguments: they may be secrets."""
    path, *arguments = sys.argv or [""]
    name = Path(path).name
    if name == "__main__.py":
        name = Path(path).parent.name
    if name in ("manage.py", "flask", "django-admin", "celery") and arguments:
        command = arguments[0]
        if re.fullmatch(r"[a-z][a-z_-]{0,39}", command):
            name = f"{name} {command}"
    return name if name not in ("", "-c", "-") else "python"


fork.on_fork(_known.clear)
