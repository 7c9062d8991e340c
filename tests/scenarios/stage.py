"""Where a scenario is played: publishers under load, a fault, and the count afterwards."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import kombu

PUBLISHER = Path(__file__).with_name("publisher.py")
#: Seconds between two looks at the journals.
LOOK = 0.1
#: Seconds in which all threads must have published once before the fault strikes.
BEGIN = 90.0
#: Our errors that leave it open whether the message is in the broker. All others say that it is not.
MAY_BE_THERE = {"PublishUnknown", "CancelledMidway"}

#: Seconds that a call may take beyond its deadline, on a machine that is busy with a restarting broker.
MARGIN = 2.0

#: The contenders that promise something; see publisher.py.
OURS = "ours"
LEASED = "ours, leased"
SHARED = "ours, shared"
AWAITED = "ours, awaited"
PROMISING = (OURS, LEASED, SHARED, AWAITED)


@dataclass(frozen=True)
class Pace:
    """How long things take, in seconds."""

    #: Load before the fault.
    before: float
    #: How long a fault lasts that can be taken back.
    outage: float
    #: Load after everybody has published again.
    after: float
    #: How long to wait until everybody has.
    recovery: float
    #: What a caller grants a pool for a connection, and again for the confirm.
    patience: float
    #: Between two messages of a thread.
    pause: float
    heartbeat: int = 1
    threads: int = 8
    limit: int = 4
    #: What a caller grants the broker for the confirm, if that is something else.
    confirm: float | None = None
    #: For one attempt to connect, if it is not the default.
    connect: float | None = None

    @property
    def confirm_timeout(self) -> float:
        """Seconds for the confirm."""
        return self.patience if self.confirm is None else self.confirm

    @property
    def deadline(self) -> float:
        """Seconds that a call may take in all."""
        return self.patience + self.confirm_timeout


@dataclass
class Call:
    """One publish, as its caller saw it."""

    began: float
    ended: float | None = None
    #: "ok", or the error's class; None while it is under way.
    outcome: str | None = None
    told: str = ""


@dataclass
class Record:
    """What came of a scenario."""

    scenario: str
    contender: str
    attempted: int
    ok: int
    errors: dict[str, int]
    #: Different messages in the broker.
    found: int
    #: Reported as published, and not there.
    lost: list[str]
    #: Copies beyond the first.
    duplicates: int
    #: Messages of which there are copies that `message_id` does not show to be the same.
    indistinct: int
    #: The error said that the message is not in the broker; it is. Told of ours alone: kombu's errors don't say.
    denied: list[str]
    #: Seconds of the longest call; of one that did not end, until it was given up.
    longest: float
    #: Messages that got a second outcome.
    twice: list[str]
    #: Calls that had not ended when their process was ended, long after their deadline.
    stuck: int
    #: Seconds from the end of the fault until every thread had published again; None if one never did.
    recovered: float | None
    #: One message of each class of error.
    told: dict[str, str] = field(default_factory=dict)

    def broken_promises(self, pace: Pace, margin: float = MARGIN) -> list[str]:
        """What of ours did not hold."""
        deadline = pace.deadline + margin
        promises = {
            f"{len(self.lost)} reported as published and not in the broker": not self.lost,
            f"{len(self.denied)} in the broker though the error said no": not self.denied,
            f"{self.indistinct} with copies of different message_ids": not self.indistinct,
            f"{len(self.twice)} with two outcomes": not self.twice,
            f"{self.stuck} calls never ended": not self.stuck,
            f"a call of {self.longest:.1f} s, over {deadline:.0f} s": self.longest <= deadline,
            f"not all published again within {pace.recovery:.0f} s": (
                self.recovered is not None and self.recovered <= pace.recovery
            ),
        }
        return [what for what, kept in promises.items() if not kept]


class Journals:
    """What the processes of a stage have written so far."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: dict[str, Call] = {}
        #: When each thread last reported a message.
        self.last_ok: dict[str, float] = {}
        #: Messages with an outcome after the first.
        self.twice: list[str] = []
        self._read: dict[Path, int] = {}

    def read(self) -> dict[str, Call]:
        for path in sorted(self.folder.glob("*.journal")):
            with path.open("rb") as journal:
                journal.seek(self._read.get(path, 0))
                text = journal.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.decode().splitlines():
                self._note(*line.split(" ", 4))
        return self.calls

    def _note(self, when: str, what: str, message: str, error: str = "", told: str = "") -> None:
        if what == "begin":
            self.calls[message] = Call(float(when))
        else:
            call = self.calls[message]
            if call.outcome is not None:
                self.twice.append(message)
                return
            call.ended, call.outcome, call.told = float(when), error or what, told
            if what == "ok":
                self.last_ok[thread_of(message)] = float(when)


def thread_of(message: str) -> str:
    return message.rpartition(".")[0]


class Stage:
    """Publishers of one contender on one broker, from their start to the count.

    :param url: where the publishers find the broker; several for failover.
    :param plain_url: where the stage itself does, past every fault.
    """

    #: What the processes run.
    script = PUBLISHER
    #: Seconds that a process may take for its end, once its calls have ended.
    farewell = 0.0

    def __init__(
        self,
        contender: str,
        scenario: str,
        pace: Pace,
        *,
        urls: list[str],
        plain_url: Callable[[], str],
        processes: int = 1,
        heartbeat: int | None = None,
        queue_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.contender, self.scenario, self.pace = contender, scenario, pace
        self.urls, self.plain_url = urls, plain_url
        self.heartbeat = heartbeat
        self.queue = kombu.Queue(
            f"scenario.{scenario}.{contender}",
            routing_key=f"scenario.{scenario}.{contender}",
            durable=True,
            queue_arguments=dict(queue_arguments or {}),
        )
        self.names = [f"p{number}" for number in range(processes)]
        #: The threads that must publish again.
        self.threads = {f"{name}.{n}" for name in self.names for n in range(pace.threads)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.folder = Path()
        self.journals = Journals(self.folder)
        self.struck_at = self.healed_at = 0.0
        #: From when to when the processes were stopped: no time of theirs.
        self.frozen = (0.0, 0.0)

    # -- the play --------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="scenario-"))
        self.journals.folder = self.folder
        try:
            with kombu.Connection(self.plain_url()) as connection:
                connection.ensure_connection(max_retries=5)
                queue = self.queue(connection.default_channel)
                queue.declare()
                queue.purge()
            for name in self.names:
                self.start(name)
            assert self.wait(lambda: self.published_since(0.0), BEGIN), self._trouble()
            time.sleep(self.pace.before)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._signal(signal.SIGKILL)
        for process in self.processes.values():
            process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def spec(self, name: str) -> dict[str, Any]:
        """What the process of this name is told."""
        return {
            "contender": self.contender,
            "name": name,
            "queue": self.queue.name,
            "urls": self.urls,
            "heartbeat": self.heartbeat,
            "limit": self.pace.limit,
            "patience": self.pace.patience,
            "confirm_timeout": self.pace.confirm_timeout,
            "connect_timeout": self.pace.connect,
            "threads": self.pace.threads,
            "pause": self.pace.pause,
        }

    def start(self, name: str) -> None:
        """Start a process."""
        with (self.folder / f"{name}.output").open("wb") as output:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-P", self.script, self.folder, json.dumps(self.spec(name))],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _trouble(self) -> str:
        told = "".join(path.read_text() for path in self.folder.glob("*.output"))
        calls = [call for call in self.journals.calls.values() if call.told]
        return f"the publishers did not begin: {told[-2000:]} {calls[:5]}"

    def wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Whether *condition* comes true."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK)
        return True

    def published_since(self, moment: float) -> bool:
        """Whether every thread has published after *moment*."""
        self.journals.read()
        return all(self.journals.last_ok.get(one, 0.0) > moment for one in self.threads)

    def _first_since(self, moment: float, found: Container[str]) -> dict[str, float]:
        """When each thread first reported a message after *moment*, of those *found*."""
        first: dict[str, float] = {}
        for message, call in self.journals.read().items():
            thread = thread_of(message)
            ok = call.outcome == "ok" and thread in self.threads and message in found
            ended = call.ended if ok else None
            if ended is not None and moment < ended < first.get(thread, float("inf")):
                first[thread] = ended
        return first

    # -- what a fault does -----------------------------------------------------------------------------

    def strikes(self) -> None:
        """The fault begins now."""
        self.struck_at = self.healed_at = time.monotonic()

    def is_over(self) -> None:
        """The broker is there again, from now on."""
        self.healed_at = time.monotonic()

    def recovers(self) -> None:
        """Let the fault last until everybody publishes in spite of it, or does not."""
        self.wait(lambda: self.published_since(self.struck_at), self.pace.recovery)

    def outage(self, seconds: float | None = None) -> None:
        """Let the fault last."""
        time.sleep(self.pace.outage if seconds is None else seconds)

    @contextlib.contextmanager
    def told(self, order: str) -> Iterator[None]:
        """The processes see this file in their folder, within."""
        (self.folder / order).touch()
        yield
        (self.folder / order).unlink()

    def kill(self, name: str) -> None:
        """SIGKILL a process; its threads need not come back."""
        os.killpg(self.processes[name].pid, signal.SIGKILL)
        self.processes.pop(name).wait(60)
        self.threads = {one for one in self.threads if not one.startswith(f"{name}.")}

    def fork(self) -> None:
        """Have every process fork; the threads of the children are to publish as well."""
        for name in self.names:
            self.expect(f"{name}f")
        (self.folder / "fork").touch()

    def expect(self, name: str) -> None:
        """There is one more process, and all its threads are to publish."""
        self.threads |= {f"{name}.{n}" for n in range(self.pace.threads)}

    def freeze(self, seconds: float) -> None:
        """Stop every process where it stands, as when a laptop is closed, and let it go on."""
        self._signal(signal.SIGSTOP)
        begin = time.monotonic()
        time.sleep(seconds)
        self.frozen = (begin, time.monotonic())
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    # -- the count -------------------------------------------------------------------------------------

    def settle(self) -> Record:
        """Wait until all publish again, end the processes, and count."""
        self.wait(lambda: self.published_since(self.healed_at), self.pace.recovery)
        time.sleep(self.pace.after)
        (self.folder / "stop").touch()
        # Twice the deadline: what has not ended by then is stuck.
        grace = time.monotonic() + 2 * self.pace.deadline + self.farewell
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, grace - time.monotonic()))
        ended_at = time.monotonic()
        self._signal(signal.SIGKILL)
        return self.count(self.journals.read(), self.drain(), ended_at)

    def drain(self) -> list[tuple[str, str | None]]:
        """Body and message_id of everything in the queue, which is empty afterwards."""
        url = self.plain_url()
        if url.startswith("redis"):
            return self._drain_redis(url)
        messages: list[tuple[str, str | None]] = []
        with kombu.Connection(url) as connection:
            connection.ensure_connection(max_retries=5)
            channel = connection.default_channel
            queue = self.queue(channel)
            left = queue.queue_declare(passive=True).message_count
            with kombu.Consumer(
                channel,
                [queue],
                no_ack=True,
                on_message=lambda m: messages.append((m.payload, m.properties.get("message_id"))),
            ):
                while len(messages) < left:
                    connection.drain_events(timeout=60)
            queue.delete()
        return messages

    def _drain_redis(self, url: str) -> list[tuple[str, str | None]]:
        import redis

        with redis.Redis.from_url(url) as client:
            rows = [json.loads(row) for row in client.lrange(self.queue.name, 0, -1)]
            client.delete(self.queue.name)
        return [
            (base64.b64decode(row["body"]).decode(), row["properties"].get("message_id"))
            for row in rows
        ]

    def seconds(self, began: float, ended: float) -> float:
        """How long a call took, without the time in which its process was stopped."""
        stopped = min(ended, self.frozen[1]) - max(began, self.frozen[0])
        return ended - began - max(0.0, stopped)

    def count(
        self, calls: dict[str, Call], messages: list[tuple[str, str | None]], ended_at: float
    ) -> Record:
        ids: dict[str, list[str | None]] = {}
        for body, message_id in messages:
            ids.setdefault(body, []).append(message_id)
        alive = [
            (message, call)
            for message, call in calls.items()
            if call.outcome is not None or thread_of(message) in self.threads
        ]
        ok = [message for message, call in alive if call.outcome == "ok"]
        errors = Counter(call.outcome for _, call in alive if call.outcome not in ("ok", None))
        durations = [self.seconds(call.began, call.ended or ended_at) for _, call in alive]
        first = self._first_since(self.healed_at, ids)
        return Record(
            scenario=self.scenario,
            contender=self.contender,
            attempted=len(calls),
            ok=len(ok),
            errors={str(name): count for name, count in errors.most_common()},
            found=len(ids),
            lost=[message for message in ok if message not in ids],
            duplicates=len(messages) - len(ids),
            indistinct=sum(
                1 for same in ids.values() if len(same) > 1 and (None in same or len({*same}) > 1)
            ),
            denied=[
                message
                for message, call in alive
                if self.contender in PROMISING
                and message in ids
                and call.outcome not in {"ok", None, *MAY_BE_THERE}
            ],
            twice=list(self.journals.twice),
            longest=max(durations),
            stuck=sum(1 for _, call in alive if call.outcome is None),
            recovered=(
                max(first.values()) - self.healed_at if len(first) == len(self.threads) else None
            ),
            told={call.outcome: call.told for _, call in alive if call.outcome not in ("ok", None)},
        )
