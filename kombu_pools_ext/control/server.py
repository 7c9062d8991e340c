"""Listening for commands: each process of a project has a socket, from the first use of its pools until its end.

``docs/explanation/control.md`` tells the states and who owns what.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import random
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial

from ..engine import fork, ways_out
from ..engine.threads import spawn_thread
from ..errors import ControlError
from .answering import converse
from .broadcast import FAREWELL, Listener, listen
from .place import Place, places_to_listen
from .process import random_part
from .project import Project
from .wire import Stranger, Stream, check_peer, prove

__all__ = ["Server", "forget", "leave", "server_of", "stop_all"]

logger = logging.getLogger("kombu_pools_ext.control")

THREAD, CALLER_THREAD = "kombu-pools-control", "kombu-pools-control-caller"
#: Callers that have not proven themselves, and callers in all, at a time; the others are hung up on.
MOST_UNPROVEN, MOST_CALLERS = 16, 64
#: Seconds for a caller's proof and request.
PROOF_TIMEOUT = 5.0
#: Connections that the system keeps for us until they are accepted.
BACKLOG = 128
#: Seconds between two log lines about strangers.
SELDOM = 60.0
#: Seconds: the first and the longest pause between attempts to listen, and the pause between two equal log lines.
FIRST_AGAIN, LONGEST_AGAIN, SAID_AGAIN = 1.0, 60.0, 3600.0
#: Attempts to put a socket into a directory that others remove.
ATTEMPTS = 10
#: Seconds to let pass when there are no descriptors for a caller.
SHORT_OF_DESCRIPTORS = 0.5


class _Bound:
    """Where a server listens: what it has to remove when it ends."""

    def __init__(self, place: Place, path: str, found: os.stat_result) -> None:
        self.place = place
        self.path = path
        self._identity = found.st_dev, found.st_ino

    def ring(self) -> bool:
        """Wake who waits for callers, by calling: it finds that it is over, and closes the socket.

        A close would not wake a thread, nor a greenlet of eventlet, and a shutdown no greenlet at all.
        """
        with socket.socket(socket.AF_UNIX) as bell:
            bell.setblocking(False)
            try:
                bell.connect(self.path)
            except BlockingIOError:
                # Others are calling already.
                return True
            except OSError:
                return False
        return True

    def remove(self) -> None:
        """Unlink the socket, if it is still that one."""
        with suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self.path)
        self.place.remove()


class _Turn:
    """One period of listening, from the first attempt until its end.

    :param in_background: whether it begins in a thread of its own, which keeps trying.
    """

    def __init__(self, *, in_background: bool) -> None:
        self.in_background = in_background
        # A SimpleQueue, because its put() is reentrant, and a finalizer may call end().
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._said: tuple[str, float] | None = None

    @property
    def has_failed(self) -> bool:
        """Whether all attempts so far have failed."""
        return self._said is not None

    def failed(self, error: Exception) -> None:
        """Log why an attempt failed, unless the same was logged within the hour."""
        words, now = f"{type(error).__name__}: {error}", time.monotonic()
        said, at = self._said or ("", 0.0)
        if said == words and now - at < SAID_AGAIN:
            return
        self._said = words, now
        if isinstance(error, ControlError):
            logger.warning(
                "control: this process cannot be reached by commands: %s; it is tried again", error
            )
        else:
            logger.error(
                "control: this process cannot be reached by commands; it is tried again",
                exc_info=error,
            )

    def succeeded(self) -> None:
        """Log that the process listens now, if a failure was logged before."""
        if self._said is not None:
            self._said = None
            logger.warning("control: this process can be reached by commands again")

    def nap(self, seconds: float) -> bool:
        """Wait for *seconds*, or until :meth:`end`; return whether it was ended."""
        try:
            self._bell.get(timeout=seconds)
        except queue.Empty:
            return False
        return True

    def end(self) -> None:
        """End the current :meth:`nap`, or else the next one. Never waits; safe in finalizers and signal handlers."""
        self._bell.put(None)


class Server:
    """This process's ear for the commands of a project: at most one socket, and a thread that waits at it.

    :param project: whose commands it takes.
    """

    def __init__(self, project: Project) -> None:
        self.project = project
        self._reset()
        fork.register(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        #: Of who begins to listen, or does: whoever ends it takes it away, and what has begun meanwhile goes.
        self._turn: _Turn | None = None
        self._listener: socket.socket | None = None
        self._bound: _Bound | None = None
        #: What listens for other machines, if anything does; a child forgets it by itself.
        self._elsewhere: Listener | None = None
        #: All sockets of this process, for a child to close.
        self._sockets: set[socket.socket] = set()
        self._callers = 0
        self._unproven = 0
        self._said_at = float("-inf")

    @property
    def listens(self) -> bool:
        """Whether the socket is there."""
        return self._bound is not None

    # -- begin and end -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to listen in the background, unless the server listens or tries to already. Never waits."""
        if not self.project.settings.enabled or os.getpid() in _over:
            return
        turn = self._turn
        if turn is not None:
            # For other machines it may not listen yet, if no thread could be started.
            self._listen_elsewhere(turn)
            return
        turn = self._claim(in_background=True)
        if turn is not None and not spawn_thread(partial(self._begin_and_listen, turn), THREAD):
            self._turn = None

    def _claim(self, *, in_background: bool = False) -> _Turn | None:
        # Closes the race of two first uses.
        with self._lock:
            if self._turn is not None:
                return None
            self._turn = turn = _Turn(in_background=in_background)
        return turn

    def _begin_and_listen(self, turn: _Turn) -> None:
        pid = os.getpid()
        wait = FIRST_AGAIN
        while self._turn is turn:
            # First, because commands from other machines must work even if the socket cannot be made (a full disk).
            self._listen_elsewhere(turn)
            try:
                listener = self._open(turn)
            except Exception as error:
                turn.failed(error)
            else:
                if listener is not None:
                    turn.succeeded()
                    self._listen(listener)
                return
            ends = turn.nap(random.uniform(wait / 2, wait))
            if os.getpid() != pid:
                _wait_in_child()
            if ends:
                return
            wait = min(2 * wait, LONGEST_AGAIN)

    def serve(self) -> bool:
        """Begin to listen now.

        :returns: whether it listens: not where control is turned off, or no thread may run.
        :raises ControlError: if the socket cannot be made.
        """
        if not self.project.settings.enabled:
            return False
        fork.child_begins()
        turn = self._turn
        if turn is not None and turn.in_background and not self.listens:
            # Try again in this thread, so that the caller gets the error.
            self.stop()
        turn = self._claim()
        if turn is None:
            return True
        try:
            listener = self._open(turn)
        except ControlError:
            self._turn = None
            raise
        if listener is not None and spawn_thread(partial(self._listen, listener), THREAD):
            self._listen_elsewhere(turn)
            return True
        self.stop()
        if listener is not None:
            self._close(listener)
        return False

    def _listen_elsewhere(self, turn: _Turn) -> None:
        if self.project.settings.broadcast is None or self._elsewhere is not None:
            return
        # Closes the race with an end that comes just now. Nothing is opened here: that is the other thread's.
        with self._lock:
            if self._turn is turn and self._elsewhere is None:
                listener = listen(self.project)
                # If no thread can be started now, the next call tries again.
                self._elsewhere = None if listener.has_ended else listener

    def _open(self, turn: _Turn) -> socket.socket | None:
        """The socket, visible and listening; ``None`` if *turn* is over.

        :raises ControlError: if there is no place for it.
        """
        ways_out.prepare()
        refusals = []
        for place in places_to_listen(self.project):
            try:
                return self._settle(place, turn)
            except ControlError as error:
                refusals.append(str(error))
        raise ControlError("; ".join(refusals))

    def _settle(self, place: Place, turn: _Turn) -> socket.socket | None:
        for _ in range(ATTEMPTS):
            try:
                place.make()
                place.key(make=True)
                return self._bind(place, turn)
            except FileNotFoundError:
                # The last process of the project has ended just now, and taken the directory with it.
                continue
        raise ControlError(f"the directory {place.path} is gone time and again")

    def _bind(self, place: Place, turn: _Turn) -> socket.socket | None:
        name = place.name_for(os.getpid(), random_part())
        # Another one for each attempt: one that is given up takes its own away, and no other one's.
        other = place.name_for(os.getpid(), os.urandom(4).hex())
        hidden = replace(other, file=f".{other.file}")
        listener = None
        try:
            listener = socket.socket(socket.AF_UNIX)
            self._sockets.add(listener)
            listener.bind(hidden.path)
            listener.listen(BACKLOG)
            found = os.lstat(hidden.path)
            # Closes the race with an end that comes just now: it finds what is to be removed, or is seen here.
            with self._lock:
                if self._turn is turn:
                    # Visible only now: what can be seen answers, or its process is dead.
                    os.rename(hidden.path, name.path)
                    self._listener, self._bound = listener, _Bound(place, name.path, found)
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
                f"cannot make a socket in {place.path}: {error.strerror or error}; {remedy}"
            ) from error
        self._close(listener)
        hidden.remove()
        return None

    def stop(self) -> None:
        """End listening: the socket goes, and its thread ends. Who is being answered is answered. Never waits."""
        fork.child_begins()
        with self._lock:
            listener, self._listener = self._listener, None
            bound, self._bound = self._bound, None
            elsewhere, self._elsewhere = self._elsewhere, None
            turn, self._turn = self._turn, None
        if turn is not None:
            turn.end()
        if elsewhere is not None:
            elsewhere.stop(0.0)
        rung = bound is not None and bound.ring()
        if bound is not None:
            bound.remove()
        if listener is not None and not rung:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            self._close(listener)

    def after_fork_in_child(self) -> None:
        """Forget the parent's socket: what is in the directory, and what is said on it, is the parent's."""
        for sock in tuple(self._sockets):
            with suppress(OSError):
                # Not shutdown(), which is the parent's end too; not sock.close(), which may want the hub of greenlets.
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
                self._say("cannot accept a caller: %s", error)
                time.sleep(SHORT_OF_DESCRIPTORS)
                continue
            self._sockets.add(caller)
            if self._listener is listener:
                self._admit(caller)
            else:
                self._close(caller)

    def _admit(self, caller: socket.socket) -> None:
        try:
            check_peer(caller)
        except (Stranger, OSError) as error:
            self._say("a caller was refused: %s", error)
            self._close(caller)
            return
        with self._lock:
            full = self._unproven >= MOST_UNPROVEN or self._callers >= MOST_CALLERS
            if not full:
                self._unproven += 1
                self._callers += 1
        if full:
            self._say("callers were hung up on: %s", "too many at once")
            self._close(caller)
        elif not spawn_thread(partial(self._answer, caller), CALLER_THREAD):
            self._ended(caller, proven=False)

    def _ended(self, caller: socket.socket, *, proven: bool) -> None:
        with self._lock:
            self._callers -= 1
            if not proven:
                self._unproven -= 1
        self._close(caller)

    def _answer(self, caller: socket.socket) -> None:
        proven = False
        try:
            stream = Stream(caller, time.monotonic() + PROOF_TIMEOUT)
            prove(stream, self._key(), asking=False)
            with self._lock:
                self._unproven -= 1
            proven = True
            converse(stream, self.project)
        except ConnectionError:
            pass  # the caller has left: it was stopped, or this process was for longer than it waits
        except (ControlError, EOFError, OSError) as error:
            # A caller that hangs up once it knows who is here wanted to know no more.
            if not (proven and isinstance(error, EOFError)):
                self._say("a caller was refused: %s", error)
        except Exception:
            logger.exception("control: answering failed")
        finally:
            self._ended(caller, proven=proven)

    def _key(self) -> bytes:
        bound = self._bound
        if bound is None:
            raise EOFError("it has ended")
        # Read each time: somebody who tidies up may have removed it.
        key = bound.place.key(make=True)
        assert key is not None, "it has just been made"
        return key

    def _say(self, words: str, what: object) -> None:
        """Log it, once in a while: it must not be a way to fill a disk."""
        now = time.monotonic()
        with self._lock:
            silent = now - self._said_at < SELDOM
            if not silent:
                self._said_at = now
        if not silent:
            logger.warning(f"control: {words}", what)  # noqa: G004  # the words are ours


def _wait_in_child() -> None:
    """Wait for ever: a greenlet goes on in a forked child, where threading would report an error at its end."""
    threading.Event().wait()


#: By name of the project and directory: two applications of one project share a socket.
_servers: dict[tuple[str, str | None], Server] = {}
#: The number of this process once it has left: pools that are used after that are not reached by commands.
_over: set[int] = set()


def server_of(project: Project) -> Server:
    """The server of *project* in this process, which serves all applications of that project."""
    key = project.name, project.settings.directory
    server = _servers.get(key)
    return _servers.setdefault(key, Server(project)) if server is None else server


def forget(server: Server) -> None:
    """End the listening of *server*, whose last pools are gone."""
    key = server.project.name, server.project.settings.directory
    # Another one may have taken its place long ago: what is collected is collected late.
    if _servers.get(key) is server:
        del _servers[key]
    server.stop()


def stop_all() -> None:
    """End all listening of this process."""
    for server in list(_servers.values()):
        server.stop()


def leave() -> None:
    """Stop listening for good: this process is ending, or was started only for a command."""
    # What a forked child inherited is not its own: after this, it knows nothing of it.
    fork.child_begins()
    _over.add(os.getpid())
    listeners = [server._elsewhere for server in _servers.values()]
    stop_all()
    # Their goodbyes: a broker would log that they have hung up.
    deadline = time.monotonic() + FAREWELL
    for listener in listeners:
        # Who has not joined may be in a name look-up, and has nobody to take leave of.
        if listener is not None and listener.joined.is_set():
            listener.stop(max(0.0, deadline - time.monotonic()))


fork.on_fork(_over.clear)
ways_out.at_exit(leave)
