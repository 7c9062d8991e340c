"""Submitted messages over leases: a few threads publish them, each on a producer that is lent for one message."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from functools import partial

from ..broker.event_loops import blocking_is_meant, event_loop
from ..engine import exit_hooks, fork
from ..engine.auto_reset_event import AutoResetEvent
from ..engine.bounded_lock import BoundedLock
from ..engine.threads import interpreter_ends, spawn_thread
from ..engine.weakrefs import Holding, WeakPlaces
from ..errors import PoolFull
from ..settings import CONFIRM_TIMEOUT
from .callback_threads import THREAD, reads_for_all, runs_callbacks
from .refusals import has_no_answer, is_busy, was_not_sent
from .submission import Submission
from .unobserved import failures
from .worker import Worker

__all__ = ["GRACE", "MOST_THREADS", "MOST_WAITING", "LeasedRoad"]

#: Threads of one alias at most; ``LIMIT`` may be lower.
MOST_THREADS = 16
#: Messages of one alias that wait to be begun, at most.
MOST_WAITING = 1000
#: Callers that wait for room are woken when so many wait: one at a time, they would change threads for each message.
FEW_WAITING = 3 * MOST_WAITING // 4
#: Seconds between two looks of a caller for room, should it become free slowly.
LOOK_FOR_ROOM = 0.1
#: Seconds after which a thread without work ends.
IDLE = 5.0
#: Seconds that what was submitted has at the end of the process.
GRACE = CONFIRM_TIMEOUT
#: Seconds between two looks of those who wait for the end of all.
LOOK_AGAIN = 1.0


class LeasedRoad:
    """Publishes the submitted messages of one alias, those of each lane one after the other.

    A lane has messages of one thread (or task) to one exchange, so one thread at a time works on it, and takes the next
    message when the broker has answered the one before. Lanes take turns. Different lanes are published side by side,
    because each message alone waits for a round trip.

    :param using: the alias, for errors.
    :param limit: returns the ``LIMIT`` of its pool; ``None`` is unlimited.
    """

    def __init__(self, using: str, limit: Callable[[], int | None]) -> None:
        self._using = using
        self._limit = limit
        self.after_fork_in_child()
        fork.register(self)

    def after_fork_in_child(self) -> None:
        """Begin afresh: what the parent was given, the parent publishes."""
        self.renew_lock()
        #: By lane, the messages that wait; a lane is here as long as a thread works on it, or is to do so.
        self._lanes: dict[Hashable, deque[Submission]] = {}
        #: The lanes that have messages, and that no thread works on.
        self._ready: deque[Hashable] = deque()
        #: By lane, what is being published.
        self._begun: dict[Hashable, Submission] = {}
        #: The messages that take room.
        self._counted: set[Submission] = set()
        #: Those who wait for room, in their order.
        self._callers: Holding[AutoResetEvent, None] = Holding()
        #: The threads, and those of them that have nothing to do.
        self._workers: WeakPlaces[Worker] = WeakPlaces()
        self._idle: list[Worker] = []
        #: Those who wait for the end of all.
        self._watchers: WeakPlaces[AutoResetEvent] = WeakPlaces()
        #: Whether nobody will wait for a thread of ours any more, so that each caller publishes by itself.
        self._ending = exit_hooks.have_run()

    def renew_lock(self) -> None:
        """Have a lock that nobody holds."""
        self._lock = BoundedLock(partial(is_busy, self._using))

    # -- what callers do ---------------------------------------------------------------------------------

    def start(self, submission: Submission) -> None:
        """Take *submission*; see :meth:`.Road.start`.

        Where no thread can be started, or the process ends, it is published in this thread.
        """
        fork.child_begins()
        # Serialized now, unless it was: the caller may change the body later.
        submission.serialize()
        # Here, because the process may end before a thread has opened anything.
        exit_hooks.prepare()
        most_threads = min(self._limit() or MOST_THREADS, MOST_THREADS)
        failures.log_dropped()
        if self._lock.owned():
            raise is_busy(self._using)
        if submission.has_room or runs_callbacks():
            # A callback must not wait for the room that its thread makes.
            with self._lock:
                worker = self._put(submission, most_threads)
        else:
            worker = self._put_when_there_is_room(submission, most_threads)
        if worker is None or (
            not self._ending and spawn_thread(partial(self._work, worker), THREAD)
        ):
            return
        with self._lock.patient:
            self._workers.drop(worker)
            others = len(self._workers)
        if interpreter_ends() and reads_for_all():
            # The connection that it holds may be the only one. Who waits for the end of all publishes this.
            return
        if self._ending or not others:
            with blocking_is_meant():
                self._work_here(submission)

    def _put(self, submission: Submission, most_threads: int) -> Worker | None:
        """Queue *submission* up; return a worker to start. To be called under the lock."""
        lane = self._lanes.get(submission.lane)
        if lane is None:
            self._lanes[submission.lane] = deque((submission,))
            self._ready.append(submission.lane)
        else:
            lane.append(submission)
        if not submission.has_room:
            self._counted.add(submission)
        if not self._ready:
            return None
        if self._idle:
            self._idle.pop().set()
        elif self._ending or len(self._workers) < most_threads:
            worker = Worker()
            self._workers.keep(worker)
            return worker
        return None

    def _put_when_there_is_room(self, submission: Submission, most_threads: int) -> Worker | None:
        me, patience = AutoResetEvent(), submission.seconds_left()
        if patience is None:
            patience = threading.TIMEOUT_MAX
        worker: Worker | None = None
        with self._lock:
            has_room = not self._callers and self._has_room()
            if has_room:
                # Returned below: what interrupts a "return" of a call here would leave the lock held.
                worker = self._put(submission, most_threads)
            elif patience <= 0 or event_loop() is not None:
                # In a coroutine there is nobody who could make room while this thread waits for it.
                raise self._is_full(0)
            else:
                # Weakly: one that is interrupted at any step does not stand in the way of the others.
                self._callers.keep(me, None)
        if has_room:
            return worker
        deadline = time.monotonic() + patience
        try:
            while (left := deadline - time.monotonic()) > 0:
                me.wait(min(left, LOOK_FOR_ROOM))
                with self._lock:
                    # Nobody overtakes who came before.
                    has_room = self._callers.alive()[0] is me and self._has_room()
                    if has_room:
                        self._callers.drop(me)
                        worker = self._put(submission, most_threads)
                if has_room:
                    return worker
            raise self._is_full(patience)
        finally:
            with self._lock.patient:
                self._callers.drop(me)
                # Whoever gives up, or finds room, wakes the next.
                self._wake_for_room()

    def _has_room(self) -> bool:
        if len(self._counted) < MOST_WAITING:
            return True
        self._counted = {one for one in self._counted if not one.future.cancelled()}
        return len(self._counted) < MOST_WAITING

    def _wake_for_room(self) -> None:
        if self._callers and len(self._counted) < MOST_WAITING:
            for first in self._callers.alive()[:1]:
                first.set()

    def _is_full(self, waited: float) -> Exception:
        within = f", and none was begun within {waited:.3g} s" if waited else ""
        return PoolFull(
            f"alias {self._using!r}: {MOST_WAITING} submitted messages wait to be published{within}; wait for the "
            "futures of earlier ones before submitting more, raise LIMIT, by which more are published at once, or in "
            "coroutines await apublish()"
        )

    def keep_order(self, submission: Submission) -> None:
        """Do nothing: one of a lane is published at a time, whoever waits for it."""

    def await_empty(self, deadline: float) -> bool:
        """Wait until all that was started has an outcome; see :meth:`.Road.await_empty`."""
        me = AutoResetEvent()
        with self._lock.patient:
            self._watchers.keep(me)
        try:
            while self._lanes:
                self._start_a_worker_if_none_is_left()
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                me.wait(min(left, LOOK_AGAIN))
            return True
        finally:
            with self._lock.patient:
                self._watchers.drop(me)

    def _start_a_worker_if_none_is_left(self) -> None:
        """Go on with messages whose caller was interrupted before it had started a worker."""
        with self._lock.patient:
            if not self._ready or len(self._workers):
                return
            worker = Worker()
            self._workers.keep(worker)
        if not spawn_thread(partial(self._work, worker), THREAD):
            self._work_here(None)

    # -- what threads do ---------------------------------------------------------------------------------

    def _work(self, worker: Worker) -> None:
        """Publish what there is, until there is nothing for a while: the body of a thread."""
        try:
            while (submission := self._await_next(worker)) is not None:
                lane = submission.lane
                try:
                    submission.publish()
                finally:
                    del submission
                    self._leave(lane)
                    failures.log_dropped()
        finally:
            self._end_of(worker)

    def _end_of(self, worker: Worker) -> None:
        """Note that a thread ends, or was killed: what it was rung for, another one does."""
        with self._lock.patient:
            self._workers.drop(worker)
            if worker in self._idle:
                self._idle.remove(worker)
            if self._ready and self._idle:
                self._idle.pop().set()

    def _work_here(self, submission: Submission | None) -> None:
        """Publish what there is in the caller's thread, until *submission* has its outcome, or nothing is left."""
        while submission is None or not submission.future.done():
            with self._lock.patient:
                one = self._take()
            if one is None:
                # Another caller publishes it.
                return
            try:
                one.publish()
            finally:
                self._leave(one.lane)

    def _await_next(self, worker: Worker) -> Submission | None:
        deadline = time.monotonic() + IDLE
        while True:
            with self._lock.patient:
                found = self._take()
                if found is not None:
                    return found
                # Closes the race with a message that comes just now: its caller finds either this thread, or none.
                if self._ending or time.monotonic() >= deadline:
                    self._workers.drop(worker)
                    if worker in self._idle:
                        self._idle.remove(worker)
                    return None
                if worker not in self._idle:
                    self._idle.append(worker)
            worker.wait(IDLE)

    def _take(self) -> Submission | None:
        """The first message of the next lane. To be called under the lock."""
        if not self._ready:
            return None
        name = self._ready.popleft()
        submission = self._begun[name] = self._lanes[name].popleft()
        self._counted.discard(submission)
        if len(self._counted) <= FEW_WAITING:
            self._wake_for_room()
        return submission

    def _leave(self, name: Hashable) -> None:
        """Note that the message of a lane has its outcome."""
        with self._lock.patient:
            del self._begun[name]
            if self._lanes[name]:
                self._ready.append(name)
            else:
                del self._lanes[name]
            if not self._lanes:
                for watcher in self._watchers.alive():
                    watcher.set()

    # -- the end of the process ------------------------------------------------------------------------------

    def end(self, deadline: float) -> None:
        """Publish what there is until *deadline*, and fail the rest. From now on callers publish by themselves."""
        with self._lock.patient:
            self._ending = True
            for worker in self._idle:
                worker.set()
        try:
            self.await_empty(deadline)
        finally:
            with self._lock.patient:
                waiting = [one for lane in self._lanes.values() for one in lane]
                begun = list(self._begun.values())
                for lane in self._lanes.values():
                    lane.clear()
                self._ready.clear()
                self._counted.clear()
            for one in waiting:
                if one.refuse():
                    one.fail(was_not_sent(self._using, one.message_id, GRACE))
                else:
                    # Begun on another road, which has handed it over.
                    one.fail(has_no_answer(self._using, one.message_id, GRACE))
            for one in begun:
                one.fail(has_no_answer(self._using, one.message_id, GRACE))


def finish() -> None:
    """At the end of the process: what was submitted gets a grace, and what failed unnoticed is logged."""
    # What a forked child inherited is not its own.
    fork.child_begins()
    deadline = time.monotonic() + GRACE
    try:
        for road in fork.live_pools(LeasedRoad):
            road.end(deadline)
    finally:
        failures.log_all()


exit_hooks.at_exit(finish)
