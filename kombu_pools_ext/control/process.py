"""Which process this is: what it is called, and what it is part of."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

from ..engine import fork
from ..engine.loaded import loaded
from .answer import Process

__all__ = ["here", "random_part"]

#: Servers, by a module that only they load, the more special ones first.
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
#: Kinds of gunicorn's workers, by their module.
_GUNICORN_WORKERS = {
    "gunicorn.workers.ggevent": "gevent worker",
    "gunicorn.workers.geventlet": "eventlet worker",
    "gunicorn.workers.gthread": "gthread worker",
    "gunicorn.workers.gtornado": "tornado worker",
    "uvicorn.workers": "uvicorn worker",
    "uvicorn_worker": "uvicorn worker",
}

#: By process id, for a child may have skipped the hooks; a plain dict, for whoever is first.
_known: dict[int, tuple[Process, str]] = {}


def here() -> Process:
    """This process. In a forked child another one."""
    return _here()[0]


def random_part() -> str:
    """Eight hexadecimal digits of this process alone; they end its name."""
    return _here()[1]


def _here() -> tuple[Process, str]:
    pid = os.getpid()
    found = _known.get(pid)
    if found is None:
        random = os.urandom(4).hex()
        host = socket.gethostname()
        server, kind = _role()
        process = Process(
            name=f"{host}:{pid}:{random}",
            host=host,
            pid=pid,
            server=server,
            kind=kind,
            started=round(_started(), 2),
            version=_version(),
        )
        found = _known.setdefault(pid, (process, random))
    return found


def _version() -> str:
    from .. import __version__

    return __version__


def _started() -> float:
    """When this process began, in seconds since 1970."""
    try:
        # What is in parentheses is the program's name, and may hold anything.
        fields = Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):  # pragma: no cover - not Linux
        return time.time()
    return time.time() - max(0.0, age)


def _role() -> tuple[str, str]:
    """What this process is part of, and what it is there."""
    server = next((name for module, name in _SERVERS.items() if module in sys.modules), "")
    if server == "uwsgi":
        return server, _greened(_uwsgi_kind(sys.modules["uwsgi"]))
    if server == "gunicorn":
        kind = next((k for module, k in _GUNICORN_WORKERS.items() if module in sys.modules), "")
        return server, (kind or "worker") if _is_forked() else "master"
    if server == "celery" and "celery.apps.worker" not in sys.modules:
        return server, "beat"
    if server == "celery":
        return server, _greened("prefork worker" if _is_child() else "worker")
    if server:
        return server, _greened("worker" if _is_child() else "server")
    return _program(), _greened("worker" if _is_child() else "")


def _uwsgi_kind(uwsgi: Any) -> str:
    if uwsgi.worker_id():
        return "worker"
    if uwsgi.masterpid() in (0, os.getpid()):
        return "master"
    return "mule" if getattr(uwsgi, "mule_id", int)() else "spooler"


def _greened(kind: str) -> str:
    """*kind*, with what stands for threads in this process."""
    gevent: Any = loaded("gevent.monkey")
    eventlet: Any = loaded("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        return f"gevent {kind}".strip()
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return f"eventlet {kind}".strip()
    return kind


def _is_child() -> bool:
    """Whether multiprocessing, or billiard, started this process."""
    for module in ("multiprocessing.process", "billiard.process"):
        process: Any = loaded(module)
        if process is not None and getattr(process.current_process(), "_parent_pid", None):
            return True
    return False


def _is_forked() -> bool:
    """Whether the parent runs the same program, as the parent of a forked worker does."""
    return _command("self") == _command(str(os.getppid()))


def _command(pid: str) -> bytes:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # pragma: no cover - not Linux
        return b""
    # gunicorn renames itself where it can.
    return re.sub(rb"^(gunicorn: )(master|worker) ", rb"\1", line).rstrip(b"\0")


def _program() -> str:
    """The program's name, with the command where it is a framework's: no other argument, which might be a secret."""
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
