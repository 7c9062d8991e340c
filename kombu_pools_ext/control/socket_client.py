"""Send a command to all processes of this machine at once, over their sockets."""

from __future__ import annotations

import os
import queue
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from ..engine.threads import spawn_thread
from ..errors import ControlError
from .answer import Answer
from .log import logger, warn_once
from .process_info import Process
from .project import Project
from .protocol import (
    LARGEST_ANSWER,
    LARGEST_REQUEST,
    Stream,
    UntrustedPeer,
    authenticate,
    check_peer,
    encode,
    peer_pid,
)
from .request import Request
from .socket_dir import SocketDir, SocketName, dirs_to_search, host_tag

__all__ = ["SocketClient"]

THREAD = "kombu-pools-ask"
#: The most processes that are asked at once. If so many hang, the others have to wait.
AT_ONCE = 64
#: Seconds, and part of the time-out, in which a process must say which one it is; else the name of its socket is used.
HELLO_TIMEOUT, HELLO_PART = 1.0, 0.5
#: The most bytes in which a process says which one it is.
LARGEST_HELLO = 8 * 1024
#: Seconds between two attempts to connect to a process that has too many callers.
RETRY_PAUSE = 0.02


class _ProcessGone(Exception):
    """The process has ended, and did not get the request."""


class SocketClient:
    """Reaches the processes of *project* on this machine. See :class:`~.client.Client`."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def who(self, request: Request, deadline: float) -> list[Process]:
        """Return the processes that *request* is for.

        :raises ControlError: if a directory is not safe to use, or cannot be read.
        """
        processes: list[Process] = []
        _FanOut(self._exchanges(request, deadline), request, deadline, execute=False).run(
            processes.extend, lambda answer: None
        )
        return processes

    def ask(
        self,
        request: Request,
        deadline: float,
        known: Callable[[list[Process]], None],
        heard: Callable[[Answer], None],
    ) -> None:
        """Have the processes carry out *request*, and wait for their answers.

        :raises ControlError: if a directory is not safe to use or cannot be read, or if the request is too large. The
            processes in other directories may have carried it out.
        """
        size = len(encode({"request": request.as_dict()}))
        if size > LARGEST_REQUEST:
            raise ControlError(
                f"the command has {size} bytes, more than {LARGEST_REQUEST}: name fewer aliases at a time"
            )
        _FanOut(self._exchanges(request, deadline), request, deadline, execute=True).run(
            known, heard
        )

    def _exchanges(self, request: Request, deadline: float) -> list[_Exchange]:
        # By the name of the socket, so that a process that listens with two secrets is asked once.
        exchanges: dict[str, _Exchange] = {}
        problems: dict[str, None] = {}
        seen = set()
        for project in self._project.with_former:
            for directory in dirs_to_search(project):
                try:
                    if os.path.realpath(directory.path) in seen:
                        continue
                    seen.add(os.path.realpath(directory.path))
                    for name, key in _sockets_in(directory):
                        exchanges.setdefault(name.file, _Exchange(name, key, request, deadline))
                except ControlError as error:
                    problems[str(error)] = None
        if problems and not exchanges:
            raise ControlError("; ".join(problems))
        for problem in problems:
            warn_once(problem)
        return list(exchanges.values())


def _sockets_in(directory: SocketDir) -> list[tuple[SocketName, bytes]]:
    """Return the sockets in *directory*, each with the key that callers must have."""
    sockets = list(directory.sockets())
    if not sockets:
        directory.remove()
        return []
    key = directory.key(make=False)
    if key is None:
        raise ControlError(
            f"the key {directory.path}/key is missing; the processes that listen there make a new one"
        )
    return [(name, key) for name in sockets]


class _Exchange:
    """The exchange with one process. It runs in its own thread."""

    def __init__(self, name: SocketName, key: bytes, request: Request, deadline: float) -> None:
        self.name = name
        self._key = key
        self._request = request
        self._deadline = deadline
        self._began = deadline - request.timeout
        #: The process, as the name of its socket describes it, until it has said which one it is.
        self.process = _process_of(name)
        #: Whether the request was sent.
        self.sent = False

    def run(self, *, execute: bool, hello: Callable[[Process], None]) -> Answer | None:
        """Send the request.

        :param execute: whether to have it carried out, or only to learn which process this is.
        :param hello: called with the process, once it has said which one it is.
        :returns: the answer; ``None`` if there is no process, or the request is not for it.
        """
        try:
            return self._ask(execute=execute, hello=hello)
        except _ProcessGone:
            return None
        except TimeoutError:
            return self.silent_answer()
        except UntrustedPeer as error:
            return self._failed(f"its socket is answered by a stranger: {error}")
        except (EOFError, OSError, ValueError) as error:
            if self.sent:
                return self.silent_answer("it ended or disconnected before it answered")
            return self._failed(f"it cannot be asked: {error}")

    def silent_answer(self, why: str | None = None) -> Answer | None:
        """Return the answer of a process that did not answer; ``None`` if the request was not for it."""
        if not self.process.is_named(self._request):
            return None
        why = why or f"no answer within {self._request.timeout:g} s"
        return Answer(self.process, "silent", error=why)

    def _failed(self, why: str) -> Answer | None:
        if not self.process.is_named(self._request):
            return None
        return Answer(self.process, "failed", error=why)

    def _ask(self, *, execute: bool, hello: Callable[[Process], None]) -> Answer | None:
        stream = self._authenticated_stream()
        try:
            self.process = Process.from_dict((stream.receive(LARGEST_HELLO) or {}).get("process"))
            if not self.process.is_named(self._request):
                return None
            hello(self.process)
            if not execute:
                return None
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            # Whether the request is for this process was decided above.
            request = replace(self._request, processes=(), hosts=(), timeout=left)
            self.sent = True
            stream.send({"request": request.as_dict()})
            given = stream.receive(LARGEST_ANSWER)
            seconds = round(time.monotonic() - self._began, 6)
            return Answer.from_dict((given or {}).get("answer"), self.process, seconds)
        except AttributeError as error:
            raise ValueError("its answer is not valid") from error
        finally:
            stream.close()

    def _authenticated_stream(self) -> Stream:
        """Connect, and return a stream on which both ends have authenticated."""
        while True:
            stream = Stream(self._connect(), self._deadline)
            try:
                authenticate(stream, self._key, is_client=True)
                return stream
            except (EOFError, ConnectionError):
                # Either it has too many callers, or it has ended. The next attempt will show which.
                stream.close()
            except BaseException:
                stream.close()
                raise
            self._pause()

    def _connect(self) -> socket.socket:
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(max(0.001, self._deadline - time.monotonic()))
                sock.connect(self.name.path)
                check_peer(sock)
                self._check_alive(sock)
                return sock
            except (ConnectionRefusedError, FileNotFoundError, ProcessLookupError) as error:
                sock.close()
                if self.name.may_be_judged and not isinstance(error, FileNotFoundError):
                    self.name.remove()
                raise _ProcessGone from None
            except BlockingIOError:
                # Its queue of callers is full.
                sock.close()
            except BaseException:
                sock.close()
                raise
            self._pause()

    def _check_alive(self, sock: socket.socket) -> None:
        """:raises ProcessLookupError: if the process is dead, and a child of it still has the socket open."""
        pid = peer_pid(sock)
        if pid is not None:
            with suppress(PermissionError):
                os.kill(pid, 0)

    def _pause(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        time.sleep(min(left, RETRY_PAUSE * (0.5 + random.random())))


def _process_of(name: SocketName) -> Process:
    """Return the process that the name of a socket describes."""
    host = socket.gethostname() if name.host == host_tag() else "?"
    return Process(name=f"{host}:{name.pid}:{name.random}", host=host, pid=name.pid)


class _FanOut:
    """Sends one command to many processes at once.

    :param execute: whether to have it carried out, or only to learn which processes listen.
    """

    def __init__(
        self, exchanges: list[_Exchange], request: Request, deadline: float, *, execute: bool
    ) -> None:
        self._exchanges = exchanges
        self._request = request
        self._deadline = deadline
        self._execute = execute
        # Looked up now, because gevent or eventlet may have replaced it.
        self._to_ask: queue.SimpleQueue[_Exchange] = queue.SimpleQueue()
        # What the threads report: which process it is, or without a process, that the exchange has ended.
        self._news: queue.SimpleQueue[tuple[_Exchange, Process | None, Answer | None]] = (
            queue.SimpleQueue()
        )

    def run(self, known: Callable[[list[Process]], None], heard: Callable[[Answer], None]) -> None:
        """Ask all, and wait until all have answered, or until the deadline."""
        for exchange in self._exchanges:
            self._to_ask.put(exchange)
        for _ in range(min(len(self._exchanges), AT_ONCE)):
            if not spawn_thread(self._work, THREAD):
                self._work()
        began = time.monotonic()
        hello_by = began + min(HELLO_TIMEOUT, (self._deadline - began) * HELLO_PART)
        unidentified, unanswered = set(self._exchanges), set(self._exchanges)
        processes: dict[str, Process] = {}
        # Answers that come before *known* is called; ``None`` after that.
        early: list[Answer] | None = []
        while unanswered:
            if early is not None and (not unidentified or time.monotonic() >= hello_by):
                self._report_known(unidentified, processes, known)
                for answer in early:
                    heard(answer)
                early = None
                if not self._execute:
                    return
            until = self._deadline if early is None else min(hello_by, self._deadline)
            try:
                exchange, process, result = self._news.get(
                    timeout=max(0.0, until - time.monotonic())
                )
            except queue.Empty:
                if time.monotonic() >= self._deadline:
                    break
                continue
            unidentified.discard(exchange)
            if process is not None:
                processes[process.name] = process
                continue
            unanswered.discard(exchange)
            if result is not None:
                processes.setdefault(result.process.name, result.process)
                if early is None:
                    heard(result)
                else:
                    early.append(result)
        if early is not None:
            self._report_known(unidentified, processes, known)
            for answer in early:
                heard(answer)
        for exchange in unanswered:
            silent = exchange.silent_answer()
            if silent is not None:
                heard(silent)

    def _report_known(
        self,
        unidentified: set[_Exchange],
        processes: dict[str, Process],
        known: Callable[[list[Process]], None],
    ) -> None:
        silent = [
            exchange.process
            for exchange in unidentified
            if exchange.process.is_named(self._request)
        ]
        known([*processes.values(), *silent])

    def _work(self) -> None:
        while True:
            try:
                exchange = self._to_ask.get_nowait()
            except queue.Empty:
                return

            def hello(process: Process, exchange: _Exchange = exchange) -> None:
                self._news.put((exchange, process, None))

            answer = None
            try:
                answer = exchange.run(execute=self._execute, hello=hello)
            except Exception:
                logger.exception("control: asking failed")
            finally:
                self._news.put((exchange, None, answer))
