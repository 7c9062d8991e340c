"""Looks at the pools and, seldom, at the brokers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kombu.exceptions import LimitExceeded

from ..aliases import Pools
from ..broker.connections import ConnectionPool
from ..control.local import error_text
from ..control.roundtrip import RoundTrip
from ..engine import fork
from ..settings import PoolSettings
from .condition import Condition
from .readiness import AliasReadiness, Readiness

__all__ = ["Probe"]

#: Fresh times after which an answer is not even believed for the moment in which the next one comes.
_TOO_OLD = 6


@dataclass
class _Answer:
    """What the broker of an alias has answered last."""

    at: float
    condition: Condition
    reason: str | None


class Probe:
    """Answers probes of one process, any number of them, with few questions to the brokers.

    What the pool knows by itself is told at once: an alarm of the broker, a suspension, an outage. Whether the broker
    answers is asked once in *fresh* seconds, on a connection of the pool, and in the background if the last answer is
    not old. So a hundred probes a second open no connection while there is one.

    :param pools: whose aliases are looked at.
    :param fresh: seconds for which an answer of the broker is believed.
    :param timeout: seconds that a look waits for the broker, if there is no earlier answer.
    """

    def __init__(
        self,
        pools: Pools,
        fresh: float = 5.0,
        timeout: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pools = pools
        self._fresh = fresh
        self._timeout = timeout
        self._clock = clock
        self.after_fork_in_child()
        fork.register(self)

    def after_fork_in_child(self) -> None:
        """Forget what the parent knew: the child has connections of its own."""
        self._lock = threading.Lock()
        self._answers: dict[str, _Answer] = {}
        #: By alias, set when the question that is under way has its answer.
        self._asking: dict[str, threading.Event] = {}

    def look(self, using: Sequence[str] | None = None) -> Readiness:
        """Return how these aliases are, or all.

        It takes no longer than the time-out, and next to nothing if there was an answer not long ago.

        :raises UnknownAlias: for an alias that is not configured.
        :raises SettingsError: if the settings are wrong.
        """
        aliases = list(self._pools.settings) if using is None else list(using)
        for alias in aliases:
            self._pools.settings_of(alias)
        deadline = self._clock() + self._timeout
        # All brokers are asked at the same time. A suspended pool lends nothing to ask over.
        waits = {
            alias: None if self._is_suspended(alias) else self._ask(alias) for alias in aliases
        }
        return Readiness([self._look(alias, waits[alias], deadline) for alias in aliases])

    def _is_suspended(self, alias: str) -> bool:
        return self._pools.connections[alias].stats().suspended

    def _ask(self, alias: str) -> threading.Event | None:
        """Ask the broker if the last answer is not fresh; return what to wait for, if there is no usable answer."""
        now = self._clock()
        with self._lock:
            answer = self._answers.get(alias)
            if answer is not None and now - answer.at < self._fresh:
                return None
            under_way = self._asking.get(alias)
            if under_way is None:
                under_way = self._asking[alias] = threading.Event()
                begin = True
            else:
                begin = False
        if begin:
            self._begin(alias, under_way)
        if answer is not None and now - answer.at < self._fresh * _TOO_OLD:
            return None
        return under_way

    def _begin(self, alias: str, under_way: threading.Event) -> None:
        # Looked up now: the settings may have changed by the time of the answer.
        given = alias, under_way, self._pools.connections[alias], self._pools.settings_of(alias)
        try:
            threading.Thread(
                target=self._run, args=given, name="kombu-pools-probe", daemon=True
            ).start()
        except RuntimeError:
            # No thread can be started at the end of the process, and for a moment in a program without threads.
            self._run(*given)

    def _run(
        self, alias: str, under_way: threading.Event, pool: ConnectionPool, settings: PoolSettings
    ) -> None:
        condition, reason = Condition.OK, None
        try:
            RoundTrip(pool, self._timeout).result()
        except LimitExceeded as error:
            condition, reason = Condition.DEGRADED, str(error)
        except Exception as error:
            condition = Condition.DOWN
            reason = error_text(error, settings)
        finally:
            with self._lock:
                self._answers[alias] = _Answer(self._clock(), condition, reason)
                self._asking.pop(alias, None)
            under_way.set()

    def _look(
        self, alias: str, under_way: threading.Event | None, deadline: float
    ) -> AliasReadiness:
        told = self._told_by_pool(alias)
        if told is not None and told.condition is not Condition.DEGRADED:
            return told
        if under_way is not None and not under_way.wait(max(0.0, deadline - self._clock())):
            return AliasReadiness(
                alias, Condition.DOWN, f"the broker has not answered within {self._timeout:g} s"
            )
        with self._lock:
            answer = self._answers.get(alias)
        if answer is None:
            # It was suspended when the brokers were asked, and is not any more.
            return AliasReadiness(alias, Condition.SUSPENDED, "the pool was suspended")
        if answer.condition is Condition.DOWN or told is None:
            return AliasReadiness(alias, answer.condition, answer.reason)
        return told

    def _told_by_pool(self, alias: str) -> AliasReadiness | None:
        """What the pool knows by itself, without a question to the broker; ``None`` if nothing is wrong."""
        stats = self._pools.connections[alias].stats()
        if stats.suspended:
            return AliasReadiness(alias, Condition.SUSPENDED, "the pool was suspended")
        if stats.outage is not None:
            return AliasReadiness(
                alias,
                Condition.DOWN,
                f"no connection could be opened for {stats.outage:.0f} s",
            )
        if stats.blocked is not None:
            return AliasReadiness(alias, Condition.BLOCKED, stats.blocked)
        if stats.waiting and stats.limit is not None and stats.lent >= stats.limit:
            return AliasReadiness(
                alias,
                Condition.DEGRADED,
                f"{stats.waiting} callers wait, for all {stats.limit} connections are lent",
            )
        return None
