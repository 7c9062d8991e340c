"""Asking the processes of this machine, through their sockets: all at once."""

from __future__ import annotations

import logging
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
from .answer import Answer, Process
from .place import Place, Socket, host_tag, places_to_look, say_once
from .project import Project
from .request import Request
from .wire import (
    LARGEST_ANSWER,
    LARGEST_REQUEST,
    Stranger,
    Stream,
    check_peer,
    encode,
    peer_pid,
    prove,
)

__all__ = ["Machine"]

logger = logging.getLogger("kombu_pools_ext.control")

THREAD = "kombu-pools-ask"
#: Processes that are asked at once; as many that hang keep the others waiting.
AT_ONCE = 64
#: Seconds, and part of the time-out, for a process to say who it is; one that does not is counted by its socket's name.
HELLO_TIMEOUT, HELLO_PART = 1.0, 0.5
#: Bytes of what a process says of itself.
LARGEST_HELLO = 8 * 1024
#: Seconds between two attempts to be heard by a process that is busy with other callers.
AGAIN = 0.02


class _Gone(Exception):
    """The process is no more, and was told nothing."""


class Machine:
    """The way to the processes of *project* on this machine."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def who(self, request: Request, deadline: float) -> list[Process]:
        """Those whom *request* is for and who are there; see :class:`~.project.Way`.

        :raises ControlError: if a directory is not safe to use, or cannot be read.
        """
        there: list[Process] = []
        _Round(self._calls(request, deadline), request, deadline, tell=False).run(
            there.extend, lambda answer: None
        )
        return there

    def ask(
        self,
        request: Request,
        deadline: float,
        known: Callable[[list[Process]], None],
        heard: Callable[[Answer], None],
    ) -> None:
        """Have them do it; see :class:`~.project.Way`.

        :raises ControlError: if a directory is not safe to use, or cannot be read, or the request is too large; the
            processes of other directories may have done it.
        """
        size = len(encode({"request": request.as_dict()}))
        if size > LARGEST_REQUEST:
            raise ControlError(
                f"the command has {size} bytes, more than {LARGEST_REQUEST}: name fewer aliases at a time"
            )
        _Round(self._calls(request, deadline), request, deadline, tell=True).run(known, heard)

    def _calls(self, request: Request, deadline: float) -> list[_Call]:
        #: By the names of the sockets: a process that listens with two secrets has one name, and is asked once.
        calls: dict[str, _Call] = {}
        problems: dict[str, None] = {}
        seen = set()
        for project in self._project.with_former:
            for place in places_to_look(project):
                try:
                    if os.path.realpath(place.path) in seen:
                        continue
                    seen.add(os.path.realpath(place.path))
                    for one, key in _sockets(place):
                        calls.setdefault(one.file, _Call(one, key, request, deadline))
                except ControlError as error:
                    problems[str(error)] = None
        if problems and not calls:
            raise ControlError("; ".join(problems))
        for problem in problems:
            say_once(problem)
        return list(calls.values())


def _sockets(place: Place) -> list[tuple[Socket, bytes]]:
    """The sockets in *place*, with the key that proves who may ask there."""
    sockets = list(place.sockets())
    if not sockets:
        place.remove()
        return []
    key = place.key(make=False)
    if key is None:
        raise ControlError(
            f"the key {place.path}/key is missing; the processes that listen there make a new one"
        )
    return [(one, key) for one in sockets]


class _Call:
    """A conversation with one process: in a thread of its own."""

    def __init__(self, name: Socket, key: bytes, request: Request, deadline: float) -> None:
        self.name = name
        self._key = key
        self._request = request
        self._deadline = deadline
        self._began = deadline - request.timeout
        #: Who it is, as far as that is known.
        self.process = _guessed(name)
        #: Whether it was told what to do.
        self.told = False

    def run(self, *, tell: bool, hello: Callable[[Process], None]) -> Answer | None:
        """Ask it.

        :param tell: have it do something; else only learn who it is.
        :param hello: is called with who it is, once it has said so.
        :returns: its answer; ``None`` where there is nobody, or nobody whom the request is for.
        """
        try:
            return self._ask(tell=tell, hello=hello)
        except _Gone:
            return None
        except TimeoutError:
            return self.silence()
        except Stranger as error:
            return self._failed(f"its socket is answered by a stranger: {error}")
        except (EOFError, OSError, ValueError) as error:
            if self.told:
                return self.silence("it ended, or hung up, before it answered")
            return self._failed(f"it cannot be asked: {error}")

    def silence(self, why: str | None = None) -> Answer | None:
        """What is known of it when it has not answered in time; ``None`` where it was not for it."""
        if not self.process.is_named(self._request):
            return None
        why = why or f"no answer within {self._request.timeout:g} s"
        return Answer(self.process, "silent", error=why)

    def _failed(self, why: str) -> Answer | None:
        if not self.process.is_named(self._request):
            return None
        return Answer(self.process, "failed", error=why)

    def _ask(self, *, tell: bool, hello: Callable[[Process], None]) -> Answer | None:
        stream = self._converse()
        try:
            self.process = Process.from_dict((stream.receive(LARGEST_HELLO) or {}).get("process"))
            if not self.process.is_named(self._request):
                return None
            hello(self.process)
            if not tell:
                return None
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            # Whom it is for has been seen to here.
            request = replace(self._request, processes=(), hosts=(), timeout=left)
            self.told = True
            stream.send({"request": request.as_dict()})
            given = stream.receive(LARGEST_ANSWER)
            seconds = round(time.monotonic() - self._began, 6)
            return Answer.from_dict((given or {}).get("answer"), self.process, seconds)
        except AttributeError as error:
            raise ValueError("its answer is none") from error
        finally:
            stream.close()

    def _converse(self) -> Stream:
        """A conversation in which both ends have proven themselves."""
        while True:
            stream = Stream(self._connect(), self._deadline)
            try:
                prove(stream, self._key, asking=True)
                return stream
            except (EOFError, ConnectionError):
                # It has too many callers, or it has ended: the next attempt tells.
                stream.close()
            except BaseException:
                stream.close()
                raise
            self._nap()

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
                if self.name.is_ours_to_judge and not isinstance(error, FileNotFoundError):
                    self.name.remove()
                raise _Gone from None
            except BlockingIOError:
                # Its queue of callers is full.
                sock.close()
            except BaseException:
                sock.close()
                raise
            self._nap()

    def _check_alive(self, sock: socket.socket) -> None:
        """:raises ProcessLookupError: if who listens is dead, and a child of it keeps the socket open by accident."""
        pid = peer_pid(sock)
        if pid is not None:
            with suppress(PermissionError):
                os.kill(pid, 0)

    def _nap(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        time.sleep(min(left, AGAIN * (0.5 + random.random())))


def _guessed(name: Socket) -> Process:
    """Who it is by the name of its socket: it has not said so yet."""
    host = socket.gethostname() if name.host == host_tag() else "?"
    return Process(name=f"{host}:{name.pid}:{name.random}", host=host, pid=name.pid)


class _Round:
    """All that are asked by one command.

    :param tell: have them do it; else only learn who is there.
    """

    def __init__(
        self, calls: list[_Call], request: Request, deadline: float, *, tell: bool
    ) -> None:
        self._calls = calls
        self._request = request
        self._deadline = deadline
        self._tell = tell
        # Looked up now: gevent or eventlet may have replaced it.
        self._todo: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        #: What the threads have to say: who somebody is, or that it is over with him.
        self._news: queue.SimpleQueue[tuple[_Call, Process | None, Answer | None]] = (
            queue.SimpleQueue()
        )

    def run(self, known: Callable[[list[Process]], None], heard: Callable[[Answer], None]) -> None:
        """Ask them, and wait until all have answered, or until the deadline."""
        for call in self._calls:
            self._todo.put(call)
        for _ in range(min(len(self._calls), AT_ONCE)):
            if not spawn_thread(self._work, THREAD):
                self._work()
        began = time.monotonic()
        hello_by = began + min(HELLO_TIMEOUT, (self._deadline - began) * HELLO_PART)
        unknown, waiting = set(self._calls), set(self._calls)
        there: dict[str, Process] = {}
        answers: list[Answer] | None = []
        while waiting:
            if answers is not None and (not unknown or time.monotonic() >= hello_by):
                self._introduce(unknown, there, known)
                for answer in answers:
                    heard(answer)
                answers = None
                if not self._tell:
                    return
            until = self._deadline if answers is None else min(hello_by, self._deadline)
            try:
                call, process, answer_ = self._news.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                if time.monotonic() >= self._deadline:
                    break
                continue
            unknown.discard(call)
            if process is not None:
                there[process.name] = process
                continue
            waiting.discard(call)
            if answer_ is not None:
                there.setdefault(answer_.process.name, answer_.process)
                if answers is None:
                    heard(answer_)
                else:
                    answers.append(answer_)
        if answers is not None:
            self._introduce(unknown, there, known)
            for answer in answers:
                heard(answer)
        for call in waiting:
            silent = call.silence()
            if silent is not None:
                heard(silent)

    def _introduce(
        self,
        unknown: set[_Call],
        there: dict[str, Process],
        known: Callable[[list[Process]], None],
    ) -> None:
        silent = [call.process for call in unknown if call.process.is_named(self._request)]
        known([*there.values(), *silent])

    def _work(self) -> None:
        while True:
            try:
                call = self._todo.get_nowait()
            except queue.Empty:
                return

            def hello(process: Process, call: _Call = call) -> None:
                self._news.put((call, process, None))

            answer = None
            try:
                answer = call.run(tell=self._tell, hello=hello)
            except Exception:
                logger.exception("control: asking failed")
            finally:
                self._news.put((call, None, answer))
