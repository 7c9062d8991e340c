"""Listening for commands that come by way of a broker: a process's one connection for it, and the thread that has it.

A command comes in two steps: "who is there", which everybody answers, and then the command itself, which names those
who are to do it. The thread answers the first at once; what is to be done is done in a thread of its own, so that a
ping that waits for a broker keeps nobody from being found.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from .. import events
from ..engine import fork
from ..engine.threads import spawn_thread
from ..errors import ControlError
from ..masking import describe
from ..settings import PoolSettings, SettingsError
from .answer import Answer, Process
from .local import tell
from .mailbox import Mailbox, open_mailbox, supported
from .options import SHORTEST_KEY
from .performing import perform, pools_in_order
from .process import here
from .project import Project
from .request import Request
from .seal import Late, Message, Refused, Seal, Window

__all__ = ["Listener", "Seldom", "listen", "seal_of", "settings_of"]

logger = logging.getLogger("kombu_pools_ext.control")

#: Seconds for the broker's answer to a goodbye.
GOODBYE = 0.25
#: Seconds that a process that ends waits for its goodbye to be said: on a busy machine its thread may have to wait.
FAREWELL = 1.0
#: Seconds before another try to connect: at random below a bound that doubles from the one to the other.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
#: The most seconds of a wait that nothing can interrupt.
UNWAKABLE = 1.0
#: Seconds that a connection has to last to end an outage.
LASTS = 30.0
#: Seconds between two lines of the log that say the same.
SAID_AGAIN = 60.0
#: Seconds to wait for messages before looking around; each message ends it.
NAP = 3600.0
#: Commands that are done at once; one more is refused.
MOST_AT_ONCE = 4


class Seldom:
    """Logs what others cause, and could cause a thousand times a second: once a minute for each *what*."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def __call__(self, what: str, message: str, *arguments: object) -> None:
        """Log a warning."""
        now = time.monotonic()
        if now - self._said.get(what, -SAID_AGAIN) >= SAID_AGAIN:
            self._said[what] = now
            logger.warning(message, *arguments)


def settings_of(project: Project) -> PoolSettings:
    """The settings of the alias that BROADCAST names.

    :raises ControlError: if there are none, or their broker cannot carry commands.
    """
    alias = project.settings.broadcast
    for pools in pools_in_order(project):
        with contextlib.suppress(SettingsError):
            if alias is not None and alias in pools.settings:
                settings = pools.settings[alias]
                why = supported(settings) or settings.missing_driver()
                if why is not None:
                    raise ControlError(f"BROADCAST: {why}")
                return settings
    raise ControlError(f"BROADCAST names {alias!r}, and no pool is configured under that alias")


def seal_of(project: Project, place: str, clock: Callable[[], float]) -> Seal:
    """Return the seal that proves a project's messages at *place*.

    :raises ControlError: if the project has no secret, or one that is too short.
    """
    key = project.key("broadcast")
    if key is None or project.secret_length < SHORTEST_KEY:
        raise ControlError(
            f"BROADCAST: commands from other machines are proven by a secret of at least {SHORTEST_KEY} characters: "
            "set KEY, or the framework's SECRET_KEY"
        )
    return Seal(key, place, clock)


def listen(project: Project) -> Listener:
    """Listen for the commands to *project*'s processes, in a thread of its own, until ``stop()``.

    Neither a broker that is down nor one that refuses us is an error: it is logged, and tried again. Where no thread
    can be started, ``has_ended`` is true at once.
    """
    listener = Listener(project)
    listener.start()
    return listener


class Listener:
    """A process that listens. A forked child forgets it.

    :param here: says which process this is.
    :param perform: does what is asked, and never raises.
    :param clock: in seconds since 1970.
    """

    def __init__(
        self,
        project: Project,
        *,
        here: Callable[[], Process] = here,
        perform: Callable[[Request, Project], Answer] = perform,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._project = project
        self._here = here
        self._perform = perform
        self._clock = clock
        self._window = Window(clock)
        self._seal: Seal | None = None
        self._seldom = Seldom()
        self._mailbox: Mailbox | None = None
        # Answers by other threads, and what wakes the one that sends them: a mailbox is one thread's.
        self._outbox: deque[tuple[str, bytes]] = deque()
        self._wakes: socket.socket | None = None
        self._waker: socket.socket | None = None
        self._under_way = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._stopping = False
        self._ended = threading.Event()
        #: Set while it can be reached.
        self.joined = threading.Event()
        fork.register(self)

    def start(self) -> None:
        """Begin."""
        events.pools_reset.connect(self._look_for_another_broker)
        if not spawn_thread(self._run, "kombu-pools-broadcast"):
            self._end()

    @property
    def has_ended(self) -> bool:
        """Whether nothing listens any more."""
        return self._ended.is_set()

    def stop(self, seconds: float = FAREWELL) -> None:
        """End, with a goodbye to the broker.

        :param seconds: at most as long it is waited for; with 0, a finalizer may call this.
        """
        self._stopping = True
        self._wake()
        if seconds > 0:
            self._ended.wait(seconds)

    def after_fork_in_child(self) -> None:
        """Close what is the parent's, without a word."""
        self._stopping = True
        events.pools_reset.disconnect(self._look_for_another_broker)
        # Not the parent's locks, which a thread of it may have held.
        self._ended = threading.Event()
        self._ended.set()
        # It closes its own descriptors.
        self._mailbox = None
        self._close_bell()

    # -- its thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures, told = 0, False
        try:
            while not self._stopping:
                began = time.monotonic()
                try:
                    self._attend()
                except Exception as error:
                    if time.monotonic() - began >= LASTS:
                        failures, told = 0, False
                    if not told:
                        told = True
                        self._tell(error)
                    failures += 1
                finally:
                    self.joined.clear()
                    self._hang_up()
                if not self._stopping:
                    most = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(failures, 10))
                    self._nap(random.uniform(0, most))
        finally:
            self._end()

    def _attend(self) -> None:
        """Join, and answer, until the end; raises whatever ends the connection."""
        project = self._project
        if self._wakes is None:
            self._wakes, self._waker = socket.socketpair()
            self._waker.setblocking(False)
        settings = settings_of(project)
        mailbox = self._mailbox = open_mailbox(settings, project.name)
        self._seal = seal_of(project, mailbox.place, self._clock)
        mailbox.join()
        self.joined.set()
        while not self._stopping and not self._has_moved(settings):
            for data in mailbox.receive(time.monotonic() + NAP, self._wakes):
                self._take(self._seal, data)
            self._rest(self._wakes)
            while self._outbox:
                mailbox.send(*self._outbox.popleft())
        mailbox.close(GOODBYE)
        self._mailbox = None

    def _hang_up(self) -> None:
        mailbox, self._mailbox = self._mailbox, None
        if mailbox is not None:
            mailbox.close(0.0)

    def _has_moved(self, settings: PoolSettings) -> bool:
        """Whether a reload has named another broker, and no answer has to be sent over this one any more."""
        try:
            same = settings_of(self._project) == settings
        except ControlError:
            # The next attempt says why.
            same = False
        return not same and not self._outbox and self._is_idle()

    def _is_idle(self) -> bool:
        # Only this thread begins commands, so none is refused meanwhile.
        places = [self._under_way.acquire(blocking=False) for _ in range(MOST_AT_ONCE)]
        for _ in filter(None, places):
            self._under_way.release()
        return all(places)

    def _look_for_another_broker(self, *, reason: str, **what: Any) -> None:
        if reason == "settings":
            self._wake()

    def _end(self) -> None:
        self._stopping = True
        events.pools_reset.disconnect(self._look_for_another_broker)
        self._close_bell()
        self._ended.set()

    def _tell(self, error: Exception) -> None:
        alias = self._project.settings.broadcast
        try:
            settings = settings_of(self._project)
        except ControlError as wrong:
            logger.warning("this process cannot be reached from other machines: %s", wrong)
            return
        logger.warning(
            "this process cannot be reached from other machines for now: the broker of pool %r (%s): %s; it is "
            "tried again",
            alias,
            settings.uri,
            tell(error, settings),
        )

    # -- being woken -----------------------------------------------------------------------------------

    def _wake(self) -> None:
        # Full: it will wake anyway. Closed: it has ended.
        with contextlib.suppress(OSError):
            if self._waker is not None:
                self._waker.send(b"\0")

    def _close_bell(self) -> None:
        for one in (self._wakes, self._waker):
            if one is not None:
                one.close()

    def _rest(self, wakes: socket.socket) -> None:
        """Read what woke us."""
        wakes.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while wakes.recv(4096):
                pass

    def _nap(self, seconds: float) -> None:
        if self._wakes is None:
            # No descriptors were left for a way to interrupt the wait.
            time.sleep(min(seconds, UNWAKABLE))
            return
        self._wakes.settimeout(max(seconds, 0.001))
        with contextlib.suppress(TimeoutError):
            self._wakes.recv(4096)

    # -- messages --------------------------------------------------------------------------------------

    def _take(self, seal: Seal, data: Any) -> None:
        """Do what a message says; nothing about one that is not the project's."""
        try:
            message = seal.open(data)
        except Refused as error:
            self._seldom("forged", "a message by way of the broker is ignored: %s", error)
            return
        address = message.content.get("answer_to")
        if message.kind not in ("who", "do") or not isinstance(address, str):
            return
        answer = partial(self._answer, seal, address, message.number)
        try:
            self._window.admit(message)
        except Late as error:
            self._seldom("late", "a command by way of the broker is ignored: %s", error)
            answer("late", {"process": asdict(self._here()), "error": str(error)})
        except Refused as error:
            self._seldom("refused", "a command by way of the broker is ignored: %s", error)
        else:
            if message.kind == "who":
                answer("here", {"process": asdict(self._here())})
            else:
                self._begin(message, answer)

    def _begin(self, message: Message, answer: Callable[[str, Mapping[str, Any]], None]) -> None:
        me, names = self._here(), message.content.get("names")
        if not isinstance(names, list) or me.name not in names:
            return

        def did(result: Answer) -> None:
            answer("did", _done(me, result))

        try:
            request = Request.from_dict(message.content.get("request"))
        except ValueError as error:
            did(Answer(me, "failed", error=" ".join(str(error).split())))
            return
        if not self._under_way.acquire(blocking=False):
            did(Answer(me, "failed", error=f"it is at {MOST_AT_ONCE} other commands"))
            return
        by = describe(message.content.get("by"))
        logger.info("%s, by way of the broker, from %s", request.command, by)

        def do() -> None:
            try:
                did(self._perform(request, self._project))
            except Exception as error:
                logger.exception("%s, by way of the broker, failed", request.command)
                did(Answer(me, "failed", error=f"{type(error).__name__}: {error}"))
            finally:
                self._under_way.release()
                # A move to another broker may be waiting for this command to end.
                self._wake()

        if not spawn_thread(do, "kombu-pools-command"):
            do()

    def _answer(
        self, seal: Seal, address: str, about: str, kind: str, content: Mapping[str, Any]
    ) -> None:
        try:
            data, _ = seal.make(kind, content, about)
        except ValueError as error:
            # Only what was done has a size of its own.
            failed = Answer(self._here(), "failed", error=f"it is done, but the answer has {error}")
            data, _ = seal.make(kind, _done(failed.process, failed), about)
        self._outbox.append((address, data))
        self._wake()


def _done(process: Process, answer: Answer) -> dict[str, Any]:
    whole = answer.as_dict()
    del whole["process"]
    return {"process": asdict(process), "answer": whole}
