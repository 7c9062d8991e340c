"""Listen for commands that come over a broker, with one connection and one thread.

A command comes in two steps. The first message asks which processes listen; all answer it. The second message has the
command, and names the processes that it is for. The thread answers the first message at once, and runs each command in
another thread, so that a process is found even while a ping waits for a broker.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from ... import events
from ...engine import fork
from ...engine.threads import spawn_thread
from ...errors import ControlError
from ...masking import describe
from ...settings import PoolSettings
from ..answer import Answer
from ..local import error_text
from ..log import RateLimitedLog, logger
from ..performing import perform
from ..process_info import Process, this_process
from ..project import Project
from ..request import Request
from .connect import broadcast_settings, open_mailbox, signer_for
from .mailbox import GOODBYE_TIMEOUT, Mailbox
from .signing import ExpiredCommand, Message, RejectedMessage, ReplayGuard, Signer

__all__ = ["Listener", "listen"]

#: In seconds, the first and the largest bound of the pause between two attempts to connect. The bound doubles, and the
#: pause is random below it.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: The most seconds of a pause that cannot be interrupted.
LONGEST_SLEEP = 1.0
#: Seconds after which a connection counts as stable, so that the next failure is logged again.
STABLE_AFTER = 30.0
#: Seconds to wait for messages. Each message ends the wait.
IDLE_WAIT = 3600.0
#: The most commands that run at once; more are refused.
MOST_AT_ONCE = 4


def listen(project: Project) -> Listener:
    """Start a :class:`Listener` for commands of *project*, and return it.

    If the broker is down, or refuses the connection, this is logged and tried again. If no thread can be started,
    ``has_ended`` is true at once.
    """
    listener = Listener(project)
    listener.start()
    return listener


class Listener:
    """Listens in this process, in a thread, until :meth:`stop`. A forked child closes it.

    :param this_process: returns the process that listens.
    :param perform: carries out a request, and never raises.
    :param clock: in seconds since 1970.
    """

    def __init__(
        self,
        project: Project,
        *,
        this_process: Callable[[], Process] = this_process,
        perform: Callable[[Request, Project], Answer] = perform,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._project = project
        self._this_process = this_process
        self._perform = perform
        self._clock = clock
        self._replay_guard = ReplayGuard(clock)
        self._signer: Signer | None = None
        self._log = RateLimitedLog()
        self._mailbox: Mailbox | None = None
        # Answers of other threads, and sockets that wake the thread that sends them, because only one thread may use
        # a mailbox.
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._wake_reader: socket.socket | None = None
        self._wake_writer: socket.socket | None = None
        self._slots = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._stopping = False
        self._ended = threading.Event()
        #: Set while the broker delivers commands to this process.
        self.joined = threading.Event()
        fork.register(self)

    def start(self) -> None:
        """Start the thread."""
        events.pools_reset.connect(self._on_pools_reset)
        if not spawn_thread(self._run, "kombu-pools-broadcast"):
            self._end()

    @property
    def has_ended(self) -> bool:
        """Whether it no longer listens."""
        return self._ended.is_set()

    def stop(self, seconds: float) -> None:
        """Stop, and close the connection properly.

        :param seconds: the longest wait for the thread; with 0, a finalizer may call this.
        """
        self._stopping = True
        self._wake()
        if seconds > 0:
            self._ended.wait(seconds)

    def after_fork_in_child(self) -> None:
        """Close the descriptors that the parent uses, and send nothing."""
        self._stopping = True
        events.pools_reset.disconnect(self._on_pools_reset)
        # A new event, because a thread of the parent may have held the lock of the old one.
        self._ended = threading.Event()
        self._ended.set()
        # The mailbox closes its descriptors in its own hook.
        self._mailbox = None
        self._close_wakeup_sockets()

    # -- the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures, logged = 0, False
        try:
            while not self._stopping:
                began = time.monotonic()
                try:
                    self._serve_connection()
                except Exception as error:
                    if time.monotonic() - began >= STABLE_AFTER:
                        failures, logged = 0, False
                    if not logged:
                        logged = True
                        self._log_failure(error)
                    failures += 1
                finally:
                    self.joined.clear()
                    self._disconnect()
                if not self._stopping:
                    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures, 10))
                    self._pause(random.uniform(0, longest))
        finally:
            self._end()

    def _serve_connection(self) -> None:
        """Join, and answer messages until the listener is stopped; raise the error that ends the connection."""
        project = self._project
        if self._wake_reader is None:
            self._wake_reader, self._wake_writer = socket.socketpair()
            self._wake_writer.setblocking(False)
        settings = broadcast_settings(project)
        mailbox = self._mailbox = open_mailbox(settings, project.name)
        self._signer = signer_for(project, mailbox.scope, self._clock)
        mailbox.join()
        self.joined.set()
        while not self._stopping and not self._has_moved(settings):
            for data in mailbox.receive(time.monotonic() + IDLE_WAIT, self._wake_reader):
                self._handle(self._signer, data)
            self._drain_wakeups(self._wake_reader)
            while self._outbox:
                mailbox.send(*self._outbox.popleft())
        mailbox.close(GOODBYE_TIMEOUT)
        self._mailbox = None

    def _disconnect(self) -> None:
        mailbox, self._mailbox = self._mailbox, None
        if mailbox is not None:
            mailbox.close(0.0)

    def _has_moved(self, settings: PoolSettings) -> bool:
        """Return whether a reload has named another broker, and all answers over this one have been sent."""
        try:
            same = broadcast_settings(self._project) == settings
        except ControlError:
            # The next attempt logs why.
            same = False
        return not same and not self._outbox and self._is_idle()

    def _is_idle(self) -> bool:
        # Only this thread starts commands, so none is refused while it holds the slots.
        slots = [self._slots.acquire(blocking=False) for _ in range(MOST_AT_ONCE)]
        for _ in filter(None, slots):
            self._slots.release()
        return all(slots)

    def _on_pools_reset(self, *, reason: str, **what: Any) -> None:
        if reason == "settings":
            self._wake()

    def _end(self) -> None:
        self._stopping = True
        events.pools_reset.disconnect(self._on_pools_reset)
        self._close_wakeup_sockets()
        self._ended.set()

    def _log_failure(self, error: Exception) -> None:
        alias = self._project.settings.broadcast
        try:
            settings = broadcast_settings(self._project)
        except ControlError as wrong:
            logger.warning("this process cannot be reached from other machines: %s", wrong)
            return
        logger.warning(
            "this process cannot be reached from other machines for now: the broker of pool %r (%s): %s; it will "
            "try again",
            alias,
            settings.uri,
            error_text(error, settings),
        )

    # -- waking the thread -----------------------------------------------------------------------------------

    def _wake(self) -> None:
        # If the socket is full, the thread wakes up anyway; if it is closed, the thread has ended.
        with contextlib.suppress(OSError):
            if self._wake_writer is not None:
                self._wake_writer.send(b"\0")

    def _close_wakeup_sockets(self) -> None:
        for one in (self._wake_reader, self._wake_writer):
            if one is not None:
                one.close()

    def _drain_wakeups(self, reader: socket.socket) -> None:
        """Read the bytes that woke this thread."""
        reader.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while reader.recv(4096):
                pass

    def _pause(self, seconds: float) -> None:
        if self._wake_reader is None:
            # The sockets that interrupt a pause could not be made for lack of descriptors.
            time.sleep(min(seconds, LONGEST_SLEEP))
            return
        self._wake_reader.settimeout(max(seconds, 0.001))
        with contextlib.suppress(TimeoutError):
            self._wake_reader.recv(4096)

    # -- messages --------------------------------------------------------------------------------------

    def _handle(self, signer: Signer, data: Any) -> None:
        """Answer a message, or start its command. Ignore a message that is not signed for this project."""
        try:
            message = signer.open(data)
        except RejectedMessage as error:
            self._log.warning("forged", "a message over the broker is ignored: %s", error)
            return
        address = message.content.get("answer_to")
        if message.kind not in ("who", "do") or not isinstance(address, str):
            return
        answer = partial(self._answer, signer, address, message.number)
        try:
            self._replay_guard.admit(message)
        except ExpiredCommand as error:
            self._log.warning("late", "a command over the broker is ignored: %s", error)
            answer("late", {"process": asdict(self._this_process()), "error": str(error)})
        except RejectedMessage as error:
            self._log.warning("refused", "a command over the broker is ignored: %s", error)
        else:
            if message.kind == "who":
                answer("here", {"process": asdict(self._this_process())})
            else:
                self._start_command(message, answer)

    def _start_command(
        self, message: Message, answer: Callable[[str, Mapping[str, Any]], None]
    ) -> None:
        me, names = self._this_process(), message.content.get("names")
        if not isinstance(names, list) or me.name not in names:
            return

        def send_answer(result: Answer) -> None:
            answer("did", _answer_content(me, result))

        try:
            request = Request.from_dict(message.content.get("request"))
        except ValueError as error:
            send_answer(Answer(me, "failed", error=" ".join(str(error).split())))
            return
        if not self._slots.acquire(blocking=False):
            send_answer(
                Answer(me, "failed", error=f"it is busy with {MOST_AT_ONCE} other commands")
            )
            return
        by = describe(message.content.get("by"))
        logger.info("%s, over the broker, from %s", request.command, by)

        def run() -> None:
            try:
                send_answer(self._perform(request, self._project))
            except Exception as error:
                logger.exception("%s, over the broker, failed", request.command)
                send_answer(Answer(me, "failed", error=f"{type(error).__name__}: {error}"))
            finally:
                self._slots.release()
                # The listening thread may wait for the end of this command, to move to another broker.
                self._wake()

        if not spawn_thread(run, "kombu-pools-command"):
            run()

    def _answer(
        self, signer: Signer, address: str, about: str, kind: str, content: Mapping[str, Any]
    ) -> None:
        try:
            data, _ = signer.make(kind, content, about)
        except ValueError as error:
            # Only the answer to a command can be too large.
            failed = Answer(
                self._this_process(), "failed", error=f"it is done, but the answer has {error}"
            )
            data, _ = signer.make(kind, _answer_content(failed.process, failed), about)
        self._outbox.append((address, data))
        self._wake()


def _answer_content(process: Process, answer: Answer) -> dict[str, Any]:
    whole = answer.as_dict()
    del whole["process"]
    return {"process": asdict(process), "answer": whole}
