"""The demo's applications: each under gunicorn on a free port of this machine, with its commands."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

from demo_inbox import Trouble

__all__ = ["APPLICATIONS", "Application"]

HERE = Path(__file__).resolve().parent

#: By name: folder, what gunicorn serves of it, and the start of its commands.
APPLICATIONS = {
    "django": ("django_project", "wsgi:application", ["manage.py", "kombu_pools"]),
    "flask": ("flask_app", "app:create_app()", ["-m", "flask", "--app", "app.py", "kombu-pools"]),
}
#: Seconds for a server to end by itself, before it is ended.
GOODBYE = 6.0
#: Lines of a server's log that are shown when something went wrong.
TAIL = 15

# Without the proxies that the environment may name.
_http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Application:
    """An example application, served from entering the ``with`` block to leaving it.

    :param name: one of :data:`APPLICATIONS`.
    :param folder: where it runs.
    :param environment: what the application reads its settings from.
    :param port: where it should listen; another is taken where that is in use.
    """

    def __init__(self, name: str, folder: Path, environment: dict[str, str], port: int = 0) -> None:
        self.name = name
        self._folder = folder
        self._project, self._served, self._command = APPLICATIONS[name]
        elsewhere = ("DJANGO_SETTINGS_MODULE", "FLASK_APP", "GUNICORN_CMD_ARGS")
        inherited = {key: value for key, value in os.environ.items() if key not in elsewhere}
        self._environment = inherited | environment
        self._port = port
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        try:
            listener = socket.create_server(("127.0.0.1", self._port), backlog=512)
        except OSError:
            listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        # It listens from now on, so the first request just waits for the workers; closed here, it ends with them.
        with listener, self._log.open("ab") as log:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "--config", str(HERE / "gunicorn.conf.py")),
                    *("--bind", f"fd://{listener.fileno()}"),
                    *("--pythonpath", str(HERE / self._project), self._served),
                ],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                # Ctrl-C is for the demo, which then ends its servers.
                start_new_session=True,
            )

    def __exit__(self, *exc: object) -> None:
        process = self._process
        if process is None:
            return
        process.terminate()
        self._process = None
        try:
            process.wait(GOODBYE)
        except subprocess.TimeoutExpired:
            # gunicorn and its workers: the whole session.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def post(self, number: int, timeout: float, page: str = "orders") -> dict[str, Any]:
        """Place an order, at one of the application's pages; returns what it answered.

        :raises Trouble: if it did not accept it.
        """
        data = urllib.parse.urlencode({"order": number}).encode()
        try:
            with _http.open(f"{self.url}{page}/", data, timeout=timeout) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            why = f"answered {error.code} {error.reason}"
        except OSError as error:
            why = f"did not answer: {getattr(error, 'reason', error)}"
        raise Trouble(f"{self.name} {why}, for order {number}{self._last_words()}")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-TAIL:]
        return "".join(f"\n    {line}" for line in ["; the end of its log:", *lines])

    def command(self, *arguments: str, timeout: float) -> tuple[str, str]:
        """Run one of the application's commands; returns it as one would type it, and what it printed.

        :raises Trouble: if it failed, or took longer than *timeout* seconds.
        """
        return self.run(*self._command, *arguments, timeout=timeout)

    def run(self, *given: str, timeout: float) -> tuple[str, str]:
        """Run any command within the application; as :meth:`command`."""
        typed = (
            f"{'python ' if given[0] == 'manage.py' else ''}{' '.join(given).removeprefix('-m ')}"
        )
        project = HERE / self._project
        files = [str(project / one) if one.endswith(".py") else one for one in given]
        try:
            done = subprocess.run(
                [sys.executable, *files],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise Trouble(f"`{typed}` did not end within {timeout:.0f} s") from None
        if done.returncode:
            raise Trouble(f"`{typed}` ended with exit code {done.returncode}:\n{done.stdout}")
        return typed, done.stdout.rstrip()
