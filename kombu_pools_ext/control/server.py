"""Listen for commands. Each process of a project has a socket, from the first use of its pools until it ends.

``docs/explanation/control.md`` describes the states, and which thread owns what.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..engine import exit_hooks, fork
from ..engine.reentrant_queue import ReentrantQueue
from ..engine.threads import spawn_thread
from ..errors import ControlError
from .log import RateLimitedLog, logger
from .performing import perform
from .process_info import this_process
from .project import Project
from .protocol import (
    LARGEST_ANSWER,
    LARGEST_REQUEST,
    Stream,
    UntrustedPeer,
    authenticate,
    check_peer,
    encode,
)
from .request import Request
from .socket_dir import SocketDir, dirs_to_listen_in

if TYPE_CHECKING:
    from .remote.listener import Listener

__all__ = ["Server", "forget", "server_of", "stop_all", "stop_for_good"]

THREAD, CALLER_THREAD = "kombu-pools-control", "kombu-pools-control-caller"
#: The most callers at a time that have not authenticated, and in all. More are disconnected.
MOST_UNAUTHENTICATED, MOST_CALLERS = 16, 64
#: Seconds in which a caller must authenticate and send its request.
REQUEST_TIMEOUT = 5.0
#: Seconds in which a caller must take the answer.
ANSWER_TIMEOUT = 5.0
#: Seconds that a process waits at its end until its connection to the broker of BROADCAST is closed. On a busy machine
#: the thread that closes it may have to wait for the processor.
GOODBYE_TIMEOUT = 1.0
#: How many connections the system queues until they are accepted.
BACKLOG = 128
#: Seconds: the first and the longest pause between attempts to listen, and when the same failure is logged again.
FIRST_PAUSE, LONGEST_PAUSE, LOG_AGAIN_AFTER = 1.0, 60.0, 3600.0
#: The most attempts to bind a socket in a directory that other processes remove.
ATTEMPTS = 10
#: Seconds to wait if there is no file descriptor for a caller.
PAUSE_WITHOUT_DESCRIPTORS = 0.5


class _BoundSocket:
    """The socket of a server in its directory. It is removed when the server stops."""

    def __init__(self, directory: SocketDir, path: str, found: os.stat_result) -> None:
        self.directory = directory
        self.path = path
        self._identity = found.st_dev, found.st_ino

    def wake_acceptor(self) -> bool:
        """Connect, so that the thread in ``accept()`` wakes up, sees that the server is stopped, and closes the socket.

        ``close()`` wakes neither a thread nor a greenlet of eventlet, and ``shutdown()`` wakes no greenlet.
        """
        with socket.socket(socket.AF_UNIX) as caller:
            caller.setblocking(False)
            try:
                caller.connect(self.path)
            except BlockingIOError:
                # The queue is full of callers, so accept() returns anyway.
                return True
            except OSError:
                return False
        return True

    def remove(self) -> None:
        """Unlink the socket, unless another one has taken its name."""
        with suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self.path)
        self.directory.remove()


class _Period:
    """One period of listening, from the first attempt to its end.

    :param in_background: whether a thread makes the socket, and tries until it succeeds.
    """

    def __init__(self, *, in_background: bool) -> None:
        self.in_background = in_background
        # A finalizer may call end().
        self._end_requested: ReentrantQueue[None] = ReentrantQueue()
        self._last_failure: tuple[str, float] | None = None

    def failed(self, error: Exception) -> None:
        """Log why an attempt failed, unless the same error was logged within the last hour."""
        text, now = f"{type(error).__name__}: {error}", time.monotonic()
        last, at = self._last_failure or ("", 0.0)
        if last == text and now - at < LOG_AGAIN_AFTER:
            return
        self._last_failure = text, now
        if isinstance(error, ControlError):
            logger.warning(
                "control: this process cannot be reached by commands: %s; it will try again", error
            )
        else:
            logger.error(
                "control: this process cannot be reached by commands; it will try again",
                exc_info=error,
            )

    def succeeded(self) -> None:
        """Log that the process listens now, if a failure was logged before."""
        if self._last_failure is not None:
            self._last_failure = None
            logger.warning("control: this process can be reached by commands again")

    def wait(self, seconds: float) -> bool:
        """Wait for *seconds*, or until :meth:`end`. Return whether the period was ended."""
        return bool(self._end_requested.get(seconds))

    def end(self) -> None:
        """End the current or the next :meth:`wait`. Never waits, and is safe in finalizers and signal handlers."""
        self._end_requested.put(None)


class Server:
    """Listens in this process for the commands of *project*, with at most one socket and one accepting thread."""

    def __init__(self, project: Project) -> None:
        self.project = project
        #: Starts a listener for commands from other machines; ``None`` without BROADCAST.
        self._listen_remotely: Callable[[Project], Listener] | None = None
        if project.settings.broadcast is not None:
            # Imported only with BROADCAST, and now, because later there may be no file descriptor to read the module.
            from .remote.listener import listen

            self._listen_remotely = listen
        self._reset()
        fork.register(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        #: The current period; ``None`` if the server neither listens nor tries to. Work for another period is undone.
        self._period: _Period | None = None
        self._listener: socket.socket | None = None
        self._bound: _BoundSocket | None = None
        #: With BROADCAST, listens for commands from other machines. It has its own fork hook.
        self._remote_listener: Listener | None = None
        #: All open sockets, to be closed in a forked child.
        self._sockets: set[socket.socket] = set()
        self._callers = 0
        self._unauthenticated = 0
        self._log = RateLimitedLog()

    @property
    def listens(self) -> bool:
        """Whether callers can see the socket."""
        return self._bound is not None

    # -- begin and end -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to listen in the background, unless the server already listens or tries to. Never waits."""
        if not self.project.settings.enabled or os.getpid() in _stopped_pids:
            return
        period = self._period
        if period is not None:
            # The remote listener may be missing, because no thread could be started for it.
            self._listen_for_other_machines(period)
            return
        period = self._claim(in_background=True)
        if period is not None and not spawn_thread(partial(self._begin_and_listen, period), THREAD):
            self._period = None

    def _claim(self, *, in_background: bool = False) -> _Period | None:
        # Two threads may use a pool for the first time at the same moment.
        with self._lock:
            if self._period is not None:
                return None
            self._period = period = _Period(in_background=in_background)
        return period

    def _begin_and_listen(self, period: _Period) -> None:
        pid = os.getpid()
        wait = FIRST_PAUSE
        while self._period is period:
            # First, because commands from other machines must work even if the socket cannot be made (a full disk).
            self._listen_for_other_machines(period)
            try:
                listener = self._open(period)
            except Exception as error:
                period.failed(error)
            else:
                if listener is not None:
                    period.succeeded()
                    self._listen(listener)
                return
            ends = period.wait(random.uniform(wait / 2, wait))
            if os.getpid() != pid:
                _wait_in_child()
            if ends:
                return
            wait = min(2 * wait, LONGEST_PAUSE)

    def serve(self) -> bool:
        """Begin to listen now.

        :returns: whether it listens; it does not if control is turned off, or no thread may run.
        :raises ControlError: if the socket cannot be made.
        """
        if not self.project.settings.enabled:
            return False
        fork.child_begins()
        period = self._period
        if period is not None and period.in_background and not self.listens:
            # Try in this thread, so that the caller gets the error.
            self.stop()
        period = self._claim()
        if period is None:
            return True
        try:
            listener = self._open(period)
        except ControlError:
            self._period = None
            raise
        if listener is not None and spawn_thread(partial(self._listen, listener), THREAD):
            self._listen_for_other_machines(period)
            return True
        self.stop()
        if listener is not None:
            self._close(listener)
        return False

    def _listen_for_other_machines(self, period: _Period) -> None:
        if self._listen_remotely is None or self._remote_listener is not None:
            return
        # stop() may end the period at this moment. Nothing is opened under the lock: the listener's thread does that.
        with self._lock:
            if self._period is period and self._remote_listener is None:
                listener = self._listen_remotely(self.project)
                # If no thread could be started, the next call tries again.
                self._remote_listener = None if listener.has_ended else listener

    def _open(self, period: _Period) -> socket.socket | None:
        """Return the socket, visible and listening; ``None`` if *period* has ended.

        :raises ControlError: if it cannot be made in any directory.
        """
        exit_hooks.prepare()
        reasons = []
        for directory in dirs_to_listen_in(self.project):
            try:
                return self._bind_in(directory, period)
            except ControlError as error:
                reasons.append(str(error))
        raise ControlError("; ".join(reasons))

    def _bind_in(self, directory: SocketDir, period: _Period) -> socket.socket | None:
        for _ in range(ATTEMPTS):
            try:
                directory.make()
                directory.key(make=True)
                return self._bind(directory, period)
            except FileNotFoundError:
                # The last process of the project has just ended, and removed the directory.
                continue
        raise ControlError(
            f"the directory {directory.path} was removed again after each attempt to make it"
        )

    def _bind(self, directory: SocketDir, period: _Period) -> socket.socket | None:
        name = directory.name_for(os.getpid(), this_process().token)
        # A new name for each attempt, so that an abandoned attempt removes only its own file.
        unused = directory.name_for(os.getpid(), os.urandom(4).hex())
        hidden = replace(unused, file=f".{unused.file}")
        listener = None
        try:
            listener = socket.socket(socket.AF_UNIX)
            self._sockets.add(listener)
            listener.bind(hidden.path)
            listener.listen(BACKLOG)
            found = os.lstat(hidden.path)
            # stop() may run at this moment: either it finds the bound socket, or we see here that the period has ended.
            with self._lock:
                if self._period is period:
                    # Visible only now, so that a visible socket either answers or belongs to a dead process.
                    os.rename(hidden.path, name.path)
                    self._listener, self._bound = (
                        listener,
                        _BoundSocket(directory, name.path, found),
                    )
                    return listener
        except OSError as error:
            if listener is not None:
                self._close(listener)
            hidden.remove()
            if isinstance(error, FileNotFoundError):
                raise
            remedy = "make room, or set DIRECTORY to another"
            if error.errno in (errno.EMFILE, errno.ENFILE):
                remedy = "raise the limit of open files (ulimit -n)"
            raise ControlError(
                f"cannot make a socket in {directory.path}: {error.strerror or error}; {remedy}"
            ) from error
        self._close(listener)
        hidden.remove()
        return None

    def stop(self) -> None:
        """Stop listening: remove the socket and end its thread. Callers that are served get answers. Never waits."""
        fork.child_begins()
        with self._lock:
            listener, self._listener = self._listener, None
            bound, self._bound = self._bound, None
            remote_listener, self._remote_listener = self._remote_listener, None
            period, self._period = self._period, None
        if period is not None:
            period.end()
        if remote_listener is not None:
            remote_listener.stop(0.0)
        woken = bound is not None and bound.wake_acceptor()
        if bound is not None:
            bound.remove()
        if listener is not None and not woken:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            self._close(listener)

    def after_fork_in_child(self) -> None:
        """Close this process's copies of the parent's sockets. The parent keeps its socket and connections."""
        for sock in tuple(self._sockets):
            with suppress(OSError):
                # Not shutdown(), which affects the parent too; not sock.close(), which may need the greenlets' hub.
                socket.close(sock.detach())
        self._reset()

    def _close(self, sock: socket.socket) -> None:
        self._sockets.discard(sock)
        with suppress(OSError):
            sock.close()

    # -- callers -------------------------------------------------------------------------------------------

    def _listen(self, listener: socket.socket) -> None:
        try:
            self._accept(listener)
        finally:
            self._close(listener)

    def _accept(self, listener: socket.socket) -> None:
        pid = os.getpid()
        while self._listener is listener:
            try:
                caller, _ = listener.accept()
            except OSError as error:
                if os.getpid() != pid:
                    _wait_in_child()
                if self._listener is not listener:
                    return
                self._warn("cannot accept a caller: %s", error)
                time.sleep(PAUSE_WITHOUT_DESCRIPTORS)
                continue
            self._sockets.add(caller)
            if self._listener is listener:
                self._admit(caller)
            else:
                self._close(caller)

    def _admit(self, caller: socket.socket) -> None:
        try:
            check_peer(caller)
        except (UntrustedPeer, OSError) as error:
            self._warn("a caller was refused: %s", error)
            self._close(caller)
            return
        with self._lock:
            full = self._unauthenticated >= MOST_UNAUTHENTICATED or self._callers >= MOST_CALLERS
            if not full:
                self._unauthenticated += 1
                self._callers += 1
        if full:
            self._warn("callers were disconnected: %s", "too many at once")
            self._close(caller)
        elif not spawn_thread(partial(self._serve_caller, caller), CALLER_THREAD):
            self._ended(caller, authenticated=False)

    def _ended(self, caller: socket.socket, *, authenticated: bool) -> None:
        with self._lock:
            self._callers -= 1
            if not authenticated:
                self._unauthenticated -= 1
        self._close(caller)

    def _serve_caller(self, caller: socket.socket) -> None:
        authenticated = False
        try:
            stream = Stream(caller, time.monotonic() + REQUEST_TIMEOUT)
            authenticate(stream, self._key(), is_client=False)
            with self._lock:
                self._unauthenticated -= 1
            authenticated = True
            handle_request(stream, self.project)
        except ConnectionError:
            pass  # the caller has disconnected: it was stopped, or its time-out is over
        except (ControlError, EOFError, OSError) as error:
            # A caller that only asks which process this is disconnects after the hello.
            if not (authenticated and isinstance(error, EOFError)):
                self._warn("a caller was refused: %s", error)
        except Exception:
            logger.exception("control: answering failed")
        finally:
            self._ended(caller, authenticated=authenticated)

    def _key(self) -> bytes:
        bound = self._bound
        if bound is None:
            raise EOFError("it has ended")
        # Read each time, because the file may have been removed.
        key = bound.directory.key(make=True)
        assert key is not None, "it has just been made"
        return key

    def _warn(self, message: str, reason: object) -> None:
        # All have one kind, because callers decide how many warnings there are.
        self._log.warning("caller", f"control: {message}", reason)


def handle_request(stream: Stream, project: Project) -> None:
    """Send which process this is, receive a request, carry it out, and send the answer.

    :raises UntrustedPeer: if the caller sends something else.
    :raises EOFError, OSError: if the caller disconnects, or is slow.
    """
    stream.send({"process": asdict(this_process())})
    given = stream.receive(LARGEST_REQUEST)
    try:
        request = Request.from_dict(given.get("request") if isinstance(given, dict) else None)
    except ValueError as error:
        answer: dict[str, Any] = {"outcome": "failed", "error": " ".join(str(error).split())}
    else:
        done = perform(request, project)
        logger.debug("control: %s: %s", request.command, done.outcome)
        answer = done.as_dict()
        # The caller knows the process already.
        del answer["process"]
    data = encode({"answer": answer})
    if len(data) > LARGEST_ANSWER:
        why = f"the answer has {len(data)} bytes, more than {LARGEST_ANSWER}; ask for fewer aliases at a time"
        data = encode({"answer": {"outcome": "failed", "error": why}})
    stream.deadline = time.monotonic() + ANSWER_TIMEOUT
    stream.send_bytes(data)


def _wait_in_child() -> None:
    """Wait for ever. A greenlet survives a fork, and threading would report an error in the child if it ended."""
    threading.Event().wait()


#: By the name and directory of the project, so that two applications of one project share a socket.
_servers: dict[tuple[str, str | None], Server] = {}
#: The number of this process, once it has stopped for good. After that, the use of a pool starts no server.
_stopped_pids: set[int] = set()


def server_of(project: Project) -> Server:
    """Return the server of *project* in this process, which serves all applications of that project."""
    key = project.name, project.settings.directory
    server = _servers.get(key)
    return _servers.setdefault(key, Server(project)) if server is None else server


def forget(server: Server) -> None:
    """Stop *server*, because it has no pools any more."""
    key = server.project.name, server.project.settings.directory
    # The pools may be collected late, after another server has taken its place.
    if _servers.get(key) is server:
        del _servers[key]
    server.stop()


def stop_all() -> None:
    """Stop all servers of this process."""
    for server in list(_servers.values()):
        server.stop()


def stop_for_good() -> None:
    """Stop listening for good, because this process ends, or was started only for a command."""
    # A forked child must forget the servers that it inherited.
    fork.child_begins()
    _stopped_pids.add(os.getpid())
    listeners = [server._remote_listener for server in _servers.values()]
    stop_all()
    # Wait until they are closed properly, because a broker logs connections that are not.
    deadline = time.monotonic() + GOODBYE_TIMEOUT
    for listener in listeners:
        # A listener that has not joined has nothing to close, and may be in a name look-up.
        if listener is not None and listener.joined.is_set():
            listener.stop(max(0.0, deadline - time.monotonic()))


fork.on_fork(_stopped_pids.clear)
exit_hooks.at_exit(stop_for_good)
