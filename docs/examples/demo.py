"""A Django and a Flask application publish through the same pools: `make demo`, or `make serve` to leave them running.

Each runs under gunicorn with two workers, forked from one that has loaded it. Both have the same secret, so that a
command of either is for the workers of both. Without BROKER_URL the messages go through files in a temporary folder;
with it, through that broker, and a queue that is deleted at the end. Restart that broker meanwhile: no order fails.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from demo_inbox import Inbox, Trouble
from demo_outbox import take_orders_while_the_broker_is_away
from demo_servers import APPLICATIONS, HERE, Application

from kombu_pools_ext import PoolSettings
from kombu_pools_ext.settings import SettingsError

#: Workers of each application, as gunicorn.conf.py has it.
WORKERS = 2
#: Orders for each application: at first, after the reset, for one of whose workers nothing came yet, and to begin with
#: where they stay.
FIRST, AGAIN, MORE, FEW = 90, 10, 10, 5
#: Requests at a time.
AT_ONCE = 16
#: Seconds for each step, and for all of them; about five are usual, and ten more when the broker is restarted.
STEP, WHOLE = 30.0, 120.0
#: Seconds of silence after which nothing more is expected, and after which what is missing is lost.
SILENCE, LOST = 0.5, 5.0
#: Where the applications listen when they stay, if they can.
PORTS = {"django": 8000, "flask": 8001}
#: Messages in a line.
COLUMNS = 5


def say(text: str = "", end: str = "\n") -> None:
    print(text, end=end, flush=True)


class Demo:
    """The applications, the inbox, and the account of what was sent and received."""

    def __init__(self, inbox: Inbox, applications: Sequence[Application], folder: Path) -> None:
        self._inbox = inbox
        self._folder = folder
        self._applications = applications
        self._ends = time.monotonic() + WHOLE
        self._placed: Counter[str] = Counter()
        #: Messages as the applications say they sent them, and as they arrived, by application, order and worker.
        self._sent: Counter[tuple[str, int, int]] = Counter()
        self._received: Counter[tuple[str, int, int]] = Counter()

    def run(self) -> int:
        """The whole story; returns how many messages it had."""
        say(
            f"{FIRST} orders to each, {AT_ONCE} at a time, as the consumer receives them; @ is the worker:"
        )
        self._reach_all(FIRST)
        django, flask = self._applications
        say(
            "\nOne secret, one project: a command of either application is for the workers of both:"
        )
        self._show_command(django, "status")
        self._show_command(flask, "reset")
        say(f"\n{AGAIN} more orders to each, after the reset:")
        self._publish(dict.fromkeys(self._applications, AGAIN))
        self._settle()
        say("\nInvoices are rows of Django's database, and wait for a broker that is away:")
        take_orders_while_the_broker_is_away(django, self._folder, self._left, say)
        return self._received.total()

    def _reach_all(self, orders: int) -> None:
        """Place so many orders with each application, and more until each worker has had one."""
        self._publish(dict.fromkeys(self._applications, orders))
        while idle := [one for one in self._applications if len(self._workers(one.name)) < WORKERS]:
            names = " and ".join(one.name for one in idle)
            say(f"\n{MORE} more to {names}, one of whose workers got none yet:")
            self._publish(dict.fromkeys(idle, MORE))

    def _left(self) -> float:
        left = min(STEP, self._ends - time.monotonic())
        if left <= 0:
            raise Trouble(f"not done within {WHOLE:.0f} s")
        return left

    def _workers(self, name: str) -> set[int]:
        return {worker for app, _, worker in self._sent if app == name}

    def _publish(self, orders: dict[Application, int]) -> None:
        """Place so many orders with each, all at the same time, and receive until all of them are there."""
        calls: list[tuple[Application, int]] = []
        for turn in range(max(orders.values())):
            for application, count in orders.items():
                if turn < count:
                    self._placed[application.name] += 1
                    calls.append((application, self._placed[application.name]))
        line = Line()
        with sending(calls, self._left) as answers:
            while answers:
                self._receive(line)
                for answer in [one for one in answers if one.done()]:
                    answers.remove(answer)
                    self._sent[key_of(answer.result())] += 1
        quiet_since = time.monotonic()
        while self._sent - self._received:
            if self._receive(line):
                self._left()
                quiet_since = time.monotonic()
            elif time.monotonic() > quiet_since + LOST:
                line.end()
                raise Trouble(f"lost: {told(self._sent - self._received)}")
        line.end()

    def _receive(self, line: Line) -> bool:
        messages = self._inbox.receive(0.1)
        for message in messages:
            self._received[key_of(message)] += 1
            line.add(message)
        return bool(messages)

    def _settle(self) -> None:
        """Wait until nothing comes any more: what came twice, or was never sent, would be there by then."""
        line = Line()
        quiet_since = time.monotonic()
        while time.monotonic() < quiet_since + SILENCE:
            if self._receive(line):
                self._left()
                quiet_since = time.monotonic()
        line.end()
        if extra := self._received - self._sent:
            raise Trouble(f"twice, or never sent: {told(extra)}")

    def _show_command(self, application: Application, name: str) -> None:
        typed, output = application.command(name, timeout=self._left())
        say(f"\n$ {typed}\n{output}")
        missing = {worker for _, _, worker in self._sent if f":{worker} " not in output}
        if missing:
            raise Trouble(f"`{typed}` does not name {', '.join(map(str, sorted(missing)))}")

    def begin(self) -> None:
        """Have each worker publish something: a process whose pools were never used is not listed."""
        say("A few orders, for each worker to have had one:")
        self._reach_all(FEW)
        say()

    def serve(self) -> None:
        """Show what arrives until Ctrl-C."""
        manage = os.path.relpath(HERE / "django_project" / "manage.py")
        say(f"to look at the workers of both: {sys.executable} {manage} kombu_pools status --watch")
        say("what the consumer receives, until Ctrl-C:")
        while True:
            for message in self._inbox.receive(0.5):
                say("  order {order} from {app}, worker {worker}".format(**message))


def key_of(message: dict[str, Any]) -> tuple[str, int, int]:
    return message["app"], message["order"], message["worker"]


def told(messages: Counter[tuple[str, int, int]]) -> str:
    """Some of them, for an error."""
    some = [f"{app} {order} of worker {worker}" for app, order, worker in sorted(messages)[:5]]
    rest = messages.total() - len(some)
    return ", ".join([*some, f"{rest} more"] if rest > 0 else some)


class Line:
    """Prints messages, some to a line, each as soon as it came."""

    def __init__(self) -> None:
        self._column = 0

    def add(self, message: dict[str, Any]) -> None:
        self._column += 1
        say("   {app:>6} {order:>3} @{worker}".format(**message), end="")
        if self._column == COLUMNS:
            self.end()

    def end(self) -> None:
        if self._column:
            say()
        self._column = 0


@contextmanager
def sending(
    calls: Sequence[tuple[Application, int]], left: Callable[[], float]
) -> Iterator[list[Future[dict[str, Any]]]]:
    """Place orders in threads of their own."""

    def place(application: Application, number: int) -> dict[str, Any]:
        return application.post(number, timeout=left())

    executor = ThreadPoolExecutor(AT_ONCE)
    try:
        yield [executor.submit(place, *call) for call in calls]
    finally:
        # After a failure the servers end first, and with them what still waits for an answer.
        executor.shutdown(wait=False, cancel_futures=True)


@contextmanager
def uninterrupted(stack: ExitStack) -> Iterator[None]:
    """Leave *stack* at the end, whatever signals come meanwhile: all in it is bounded in time."""
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        stack.close()


def queue_name() -> str:
    """A name that no other queue of the broker has."""
    return f"orders-demo-{uuid.uuid4().hex}"


def play(url: str, stays: bool) -> None:
    settings = PoolSettings.of(url=url, connect_timeout=5)
    if settings.transport == "memory":
        raise Trouble("memory:// stays within a process; leave BROKER_URL unset, or name a broker")
    missing = settings.missing_driver()
    if missing:
        raise Trouble(missing)
    stack = ExitStack()
    with uninterrupted(stack):
        folder = Path(tempfile.mkdtemp(prefix="kombu-pools-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        queue = queue_name()
        # Declared before anybody publishes.
        inbox = stack.enter_context(Inbox(url, folder, queue))
        environment = {
            "BROKER_URL": url,
            "ORDERS_QUEUE": queue,
            "DATABASE": str(folder / "shop.sqlite3"),
        }
        if not stays:
            # Two demos at a time do not reset each other's workers. A socket's path is to be short.
            sockets = tempfile.mkdtemp(prefix="kp-", dir="/tmp")
            stack.callback(shutil.rmtree, sockets, ignore_errors=True)
            environment |= {"SECRET_KEY": secrets.token_urlsafe(), "XDG_RUNTIME_DIR": sockets}
        applications = [
            stack.enter_context(Application(name, folder, environment, PORTS[name] if stays else 0))
            for name in APPLICATIONS
        ]
        demo = Demo(inbox, applications, folder)
        if stays:
            # Before anybody else can place orders, for these are counted.
            demo.begin()
        say(f"Django and Flask under gunicorn, {WORKERS} workers each, through {settings.uri}:")
        for application in applications:
            say(f"  {application.name:>6}  {application.url}")
        say()
        if stays:
            demo.serve()
        count = demo.run()
    workers = WORKERS * len(applications)
    say(
        f"\ndemo: {count} messages from {workers} workers of {len(applications)} applications"
        f" through {settings.uri}, none lost, none twice"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="leave both running, until Ctrl-C")
    stays = parser.parse_args().serve
    url = os.environ.get("BROKER_URL") or "filesystem://"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        play(url, stays)
    except KeyboardInterrupt:
        say("\nstopped" if stays else "\ndemo: interrupted")
        return 0 if stays else 130
    except (Trouble, SettingsError) as error:
        say(f"\ndemo: failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
