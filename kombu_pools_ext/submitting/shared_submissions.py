"""Submitted messages over the connection that all threads share."""

from __future__ import annotations

import time
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Hashable
from functools import partial
from itertools import count

from ..broker.event_loops import event_loop
from ..engine import exit_hooks, fork
from ..engine.auto_reset_event import AutoResetEvent
from ..engine.bounded_lock import BoundedLock
from ..errors import PoolFull
from ..publisher import CannotBeShared, Outgoing, SharedRoad
from .callback_threads import runs_callbacks
from .leased_road import GRACE, MOST_WAITING
from .refusals import has_no_answer, is_busy, was_not_sent
from .submission import Road, Submission
from .unobserved import failures

__all__ = ["SharedSubmissions"]

#: Seconds between two looks of one who waits for room, or for the end of all.
LOOK = 0.1


class SharedSubmissions:
    """Takes submitted messages to the shared connection of an alias, and those that cannot be shared to its leases.

    Messages of one lane keep their order. So one that needs a lease waits until those before it have their outcome,
    and those after it wait for that one.

    :param using: the alias, for errors.
    :param shared: returns the shared road of its pool; ``None`` if the pool has none any more.
    :param leased: takes what cannot be shared.
    """

    def __init__(self, using: str, shared: Callable[[], SharedRoad | None], leased: Road) -> None:
        self._using = using
        self._shared = shared
        self._leased = leased
        self.after_fork_in_child()
        fork.register(self)

    def after_fork_in_child(self) -> None:
        """Begin afresh: what the parent was given, the parent publishes."""
        self.renew_lock()
        #: Numbers in the order of the calls.
        self._numbers = count()
        #: What is on its way: with its message on the shared connection, with ``None`` on a lease.
        self._flying: dict[Submission, Outgoing | None] = {}
        #: By lane, how many are on their way, or are just being told of their outcome.
        self._in_lane: Counter[Hashable] = Counter()
        #: By lane in which a message is on a lease, or waits for that, those that come after it, in their order.
        self._behind: dict[Hashable, deque[Submission]] = {}
        #: Whether nobody will wait for the answers any more: each message takes a lease, on which its caller waits.
        self._ending = exit_hooks.have_run()

    def renew_lock(self) -> None:
        """Have a lock that nobody holds."""
        self._lock = BoundedLock(partial(is_busy, self._using))

    # -- what callers do ---------------------------------------------------------------------------------

    def start(self, submission: Submission) -> None:
        """Take *submission*; see :meth:`.Road.start`."""
        fork.child_begins()
        exit_hooks.prepare()
        failures.log_dropped()
        if self._lock.owned():
            raise is_busy(self._using)
        if not submission.has_room:
            if not runs_callbacks():
                self._wait_for_room(submission)
            submission.has_room = True
        submission.number = next(self._numbers)
        lane = submission.lane
        try:
            road, message = None, None
            if lane not in self._behind:
                road, message = self._prepared(submission)
            if road is not None and message is not None:
                if submission.awaited is not None and lane not in self._in_lane:
                    # A task waits for each of its messages: this one has no other beside it that it could overtake.
                    self._flying[submission] = message
                    self._fly(road, submission, message)
                    return
            else:
                # Now: the caller may change the body later.
                submission.serialize()
            with self._lock:
                # Again: what was on its way may have turned out to need a lease meanwhile.
                waits = road is None or message is None or lane in self._behind
                if waits:
                    # From here on, the others of the lane come behind it.
                    self._queue_up(submission)
                else:
                    self._count(submission, message)
            if road is None or message is None or waits:
                self._advance(lane)
            else:
                self._fly(road, submission, message)
        except BaseException:
            # It was not taken: nothing of it may stay counted, and the caller has the error instead of a future.
            submission.give_up()
            self._take_back(submission)
            raise

    def _queue_up(self, submission: Submission) -> None:
        """Put *submission* behind those of its lane that were started before it. To be called under the lock."""
        behind = self._behind.setdefault(submission.lane, deque())
        insort(behind, submission, key=_number)

    def _prepared(self, submission: Submission) -> tuple[SharedRoad | None, Outgoing | None]:
        """The shared road and the message for it; ``None`` for the message if it needs a lease.

        :raises Exception: if the alias is gone, or its settings are wrong.
        """
        road = self._shared()
        if road is None or submission.needs_lease or submission.is_ended or self._ending:
            return road, None
        return road, submission.outgoing(road)

    def _count(self, submission: Submission, message: Outgoing | None) -> None:
        """Note that *submission* is on its way. To be called under the lock."""
        self._flying[submission] = message
        self._in_lane[submission.lane] += 1
        submission.counted = True

    def _take_back(self, submission: Submission) -> None:
        """Forget *submission*, which its caller gives up."""
        lane = submission.lane
        with self._lock.patient:
            behind = self._behind.get(lane)
            if behind is not None and submission in behind:
                behind.remove(submission)
            if self._flying.pop(submission, self) is not self:
                self._leave_lane(submission)
        self._advance(lane)

    def keep_order(self, submission: Submission) -> None:
        """Have what comes later in its lane stay behind *submission*, for whose outcome its task waits no longer."""
        with self._lock.patient:
            if not submission.counted and submission in self._flying:
                self._in_lane[submission.lane] += 1
                submission.counted = True
                # Again: it may have landed before it was counted, and nobody would end that.
                if submission not in self._flying:
                    self._leave_lane(submission)
        self._advance(submission.lane)

    def _fly(self, road: SharedRoad, submission: Submission, message: Outgoing) -> None:
        message.begin = submission.begin
        submission.is_timed = True
        awaited, told = submission.awaited, partial(self._landed, road, submission)
        try:
            if awaited is None:
                road.publisher.submit(message, told)
            else:
                road.publisher.submit(message, told, at_once=False)
                awaited.side.writes.soon(road.publisher.write)
        except BaseException as error:
            # In this order: who writes notes that first, and looks then whether it has its outcome.
            message.settle(error)
            if isinstance(error, Exception) and not message.written:
                # No thread may run here, for example: a lease needs none.
                self._landed(road, submission, message, CannotBeShared())
            else:
                self._landed(road, submission, message)
                if not isinstance(error, Exception):
                    raise

    def _wait_for_room(self, submission: Submission) -> None:
        patience = submission.seconds_left()
        deadline = None if patience is None else time.monotonic() + patience
        me = AutoResetEvent()
        while len(self._flying) + sum(map(len, list(self._behind.values()))) >= MOST_WAITING:
            left = LOOK if deadline is None else deadline - time.monotonic()
            # In a coroutine there is nobody who could make room while this thread waits for it.
            if left <= 0 or event_loop() is not None:
                raise PoolFull(
                    f"alias {self._using!r}: {MOST_WAITING} submitted messages have no outcome yet; wait for the "
                    "futures of earlier ones before submitting more, or in coroutines await apublish()"
                )
            me.wait(min(left, LOOK / 10))

    def await_empty(self, deadline: float) -> bool:
        """Wait until all that was started has an outcome; see :meth:`.Road.await_empty`."""
        me = AutoResetEvent()
        while self._flying or self._in_lane or self._behind:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            # What waits for a lease is published here, if no thread can be started for it any more.
            if self._leased.await_empty(time.monotonic() + min(left, LOOK / 10)):
                me.wait(min(left, LOOK / 10))
        return self._leased.await_empty(deadline)

    # -- what comes after ----------------------------------------------------------------------------------

    def _landed(
        self,
        road: SharedRoad,
        submission: Submission,
        message: Outgoing,
        error: BaseException | None = None,
    ) -> None:
        """*message* has its outcome: tell the future, or have it published over a lease.

        :param road: the one that it was given to. The alias may have another one by now, or be gone.
        """
        # One step: of two that come here the first goes on.
        if self._flying.pop(submission, self) is self:
            return
        error = error or message.error
        message.forget_error()
        try:
            if error is None:
                submission.succeed()
            elif isinstance(error, CannotBeShared) or road.was_not_declared(message, error):
                # A lease declares what is gone, and publishes it once more.
                submission.needs_lease = True
                submission.is_timed = False
                with self._lock.patient:
                    self._queue_up(submission)
            else:
                submission.fail(error)
        finally:
            # Also if a callback of the future has raised what ends its thread.
            if submission.counted or submission.needs_lease:
                with self._lock.patient:
                    self._leave_lane(submission)
                self._advance(submission.lane)

    def _leave_lane(self, submission: Submission) -> None:
        """Note that *submission* is no longer on its way. To be called under the lock."""
        if not submission.counted:
            return
        submission.counted, lane = False, submission.lane
        self._in_lane[lane] -= 1
        if not self._in_lane[lane]:
            del self._in_lane[lane]

    def _advance(self, lane: Hashable) -> None:
        """Publish what comes next in *lane*, if nothing before it is on its way."""
        while (submission := self._next_of(lane)) is not None:
            # Here, neither on the connection, whose reader would note late that nothing was sent, nor by its callback:
            # each would call the next one, as deep as there are messages.
            if submission.is_ended or (submission.future.cancelled() and not submission.begin()):
                self._left(submission)
            else:
                self._take_off(submission)

    def _next_of(self, lane: Hashable) -> Submission | None:
        with self._lock.patient:
            behind = self._behind.get(lane)
            if behind is None or self._in_lane.get(lane):
                return None
            if not behind:
                del self._behind[lane]
                return None
            submission = behind.popleft()
            # In the same step, so that nobody else takes the next one.
            self._count(submission, None)
            return submission

    def _take_off(self, submission: Submission) -> None:
        """Publish *submission*, which has its turn. An error is its outcome."""
        try:
            road, message = self._prepared(submission)
            if road is None or message is None:
                submission.when_ended(partial(self._left_its_lease, submission))
                self._leased.start(submission)
                return
            self._flying[submission] = message
        except BaseException as error:
            # As above: not by its callback.
            submission.when_ended(_nothing)
            submission.fail(error)
            self._left(submission)
            if not isinstance(error, Exception):
                self._advance(submission.lane)
                raise
            return
        self._fly(road, submission, message)

    def _left(self, submission: Submission) -> None:
        with self._lock.patient:
            if self._flying.pop(submission, self) is not self:
                self._leave_lane(submission)

    def _left_its_lease(self, submission: Submission) -> None:
        self._left(submission)
        self._advance(submission.lane)

    # -- the end of the process ------------------------------------------------------------------------------

    def end(self, deadline: float) -> None:
        """Wait for the outcomes until *deadline*, and fail the rest. From now on callers publish by themselves."""
        self._ending = True
        self.await_empty(deadline)
        behind = [one for lane in list(self._behind.values()) for one in list(lane)]
        # All at first: what one leaves behind would be sent otherwise.
        refused = {one: one.refuse() for one in [*self._flying, *behind]}
        for submission, was_waiting in refused.items():
            error = was_not_sent if was_waiting else has_no_answer
            submission.fail(error(self._using, submission.message_id, GRACE))


def _number(submission: Submission) -> int:
    return submission.number


def _nothing() -> None:
    """Do nothing: what was to come is done elsewhere."""


def finish() -> None:
    """At the end of the process: what was submitted gets a grace."""
    fork.child_begins()
    deadline = time.monotonic() + GRACE
    for one in fork.live_pools(SharedSubmissions):
        one.end(deadline)


exit_hooks.at_exit(finish)
