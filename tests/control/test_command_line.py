"""The command line of both frameworks, with processes whose answers a test chooses."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.control import command_line, local
from kombu_pools_ext.control.answer import Answer, Answers
from kombu_pools_ext.control.options import ControlSettings
from kombu_pools_ext.control.process_info import Process
from kombu_pools_ext.control.project import Project
from kombu_pools_ext.control.request import READ_ONLY, Request
from kombu_pools_ext.errors import ControlError

SECRET = "s3cr3t-word"
NOBODY = "no process of this project is running here (pools that were never used do not listen)"

WORKER = Process("w1", "web1", 4711, "gunicorn", "gthread worker", 1000.0, "0.1.0")
OTHER = Process("w2", "web2", 4712, "celery", "worker", 1000.0, "0.1.0")


class Scripted:
    """Stands in for a Control, with processes that give the chosen answers."""

    def __init__(self, *answers: Answer, problems: Sequence[str] = (), **settings: Any) -> None:
        self.project = Project(ControlSettings(**settings), "a secret of this test")
        self.answers = answers
        self.problems = tuple(problems)
        self.asked: list[Request] = []
        self.error: ControlError | None = None
        self.reasons: list[str] = []

    def likely_reasons(self) -> list[str]:
        return self.reasons

    def ask(
        self,
        command: str,
        *,
        known: Callable[[list[Process]], None] | None = None,
        heard: Callable[[Answer], None] | None = None,
        **arguments: Any,
    ) -> Answers:
        request = Request(command=command, **arguments)
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        if known is not None:
            known([answer.process for answer in self.answers])
        for answer in self.answers:
            if heard is not None:
                heard(answer)
        return Answers(request, self.answers, self.problems, 0.01)

    def who(self, *, problem: Callable[[str], None], **arguments: Any) -> list[Process]:
        Request(command="status", **arguments)
        if self.error is not None:
            problem(str(self.error))
            return []
        for one in self.problems:
            problem(one)
        return [answer.process for answer in self.answers]


class Terminal:
    """A terminal that keeps what is printed."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self.drawn: list[str] = []
        self.hints: list[str] = []
        self.on_screen = False
        self.paint: Callable[[str, str], str] = lambda kind, line: line

    def run(self, command: str, control: Any, pools: Pools | None = None, **options: Any) -> int:
        screen = command_line.Screen(
            self.out.append,
            self.err.append,
            self.paint,
            self.drawn.append if self.on_screen else None,
            self.hints.append if self.on_screen else None,
        )
        pools = Pools(default="memory://") if pools is None else pools
        return command_line.run(command, lambda: control, pools, screen, **options)


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def status_row(**numbers: Any) -> dict[str, Any]:
    return {
        "host": "web1", "pid": 4711, "alias": "default", "broker": "amqp://shop:**@mq//", "limit": 20, "size": 4,
        "idle": 3, "lent": 1, "opening": 0, "waiting": 0, "acquires": 512, "waits": 2, "timeouts": 0, "refused": 0,
        "opened": 6, "open_failures": 0, "closed": {"expired": 1, "idle": 1}, "seconds_waited": 0.1, "outage": None,
        "blocked": None, "suspended": False, **numbers,
    }  # fmt: skip


def done(process: Process, *rows: dict[str, Any], **answer: Any) -> Answer:
    return Answer(process, "done", rows, seconds=0.01, **answer)


def columns(lines: Sequence[str], *names: str) -> list[list[str]]:
    """Return the cells under these heads, of each line below the first. Only cells at the end may be empty."""
    head, *rows = [re.split(" {2,}", line.strip()) for line in lines]
    return [[row[head.index(name)] for name in names] for row in rows]


# -- tables ------------------------------------------------------------------------------------------------------------


def test_status_has_a_row_for_each_process_and_pool(terminal: Terminal) -> None:
    audit = status_row(alias="audit", limit=None, idle=0, lent=0, outage=12.4)
    ill = status_row(blocked="low on\nmemory", suspended=True)
    control = Scripted(done(WORKER, status_row(), audit), done(OTHER, ill))
    assert terminal.run("status", control) == 0
    assert columns(
        terminal.out, "PROCESS", "SERVER", "ALIAS", "LIMIT", "IDLE", "LENT", "CLOSED"
    ) == [
        ["web1:4711", "gunicorn gthread worker", "default", "20", "3", "1", "2"],
        ["web1:4711", "gunicorn gthread worker", "audit", "∞", "0", "0", "2"],
        ["web2:4712", "celery worker", "default", "20", "3", "1", "2"],
    ]
    assert [line.partition("**@mq//")[1] for line in terminal.out[1:]] == ["**@mq//"] * 3
    assert " ok " in terminal.out[1]
    assert " down for 12 s " in terminal.out[2]
    assert r" suspended, blocked: low on\nmemory " in terminal.out[3]
    assert terminal.err == []
    assert all(line.isprintable() for line in terminal.out)


@pytest.mark.parametrize(
    "started, shown",
    [(0.0, "–"), (10_000.0, "0 s"), (9_941.0, "59 s"), (9_000.0, "16 min"), (2_000.0, "2 h")],
)
def test_how_long_a_process_has_been_running(started: float, shown: str) -> None:
    process = Process("w", "web1", 1, started=started)
    answers = Answers(Request(command="status"), (done(process, status_row()),))
    lines = [line for _, line in command_line.answer_table(answers, now=10_000.0)]
    assert columns(lines, "UP") == [[shown]]
    assert f" {shown} " in command_line.process_table([process], now=10_000.0)[1][1]


def test_days_of_running() -> None:
    process = Process("w", "web1", 1, started=1.0)
    [_, (_, line)] = command_line.process_table([process], now=86400 * 3.5)
    assert "3 d" in line


@pytest.mark.parametrize(
    "command, row, result",
    [
        ("reset", {"closed": 2, "lent": 0}, "closed 2 idle connections"),
        (
            "reset",
            {"closed": 1, "lent": 2},
            "closed 1 idle connection, 2 lent will be closed when they come back",
        ),
        (
            "reset",
            {"closed": 0, "lent": 1},
            "closed 0 idle connections, 1 lent will be closed when it comes back",
        ),
        ("ping", {"seconds": 0.0112, "broker": "amqp://mq//"}, "ok in 11.2 ms  amqp://mq//"),
        ("limit", {"limit": 20, "before": 10, "lent": 4}, "limit 20, was 10"),
        (
            "limit",
            {"limit": 3, "before": None, "lent": 4},
            "limit 3, was ∞, 1 lent will be closed when it comes back",
        ),
        ("suspend", {}, "suspended"),
        ("resume", {}, "resumed"),
    ],
)
def test_each_pool_has_a_line(
    terminal: Terminal, command: str, row: dict[str, Any], result: str
) -> None:
    control = Scripted(done(WORKER, {"alias": "default", "ok": True, "error": None, **row}))
    assert terminal.run(command, control, limit=row.get("limit")) == 0
    assert terminal.out == [f"web1:4711  gunicorn gthread worker  default  {result}"]
    assert terminal.err == []


def test_failures_are_in_the_table_and_in_a_summary(terminal: Terminal) -> None:
    bad = {"alias": "audit", "ok": False, "error": "OSError: no way", "closed": 0, "lent": 0}
    good = {"alias": "default", "ok": True, "error": None, "closed": 0, "lent": 0}
    processes = [Process(str(pid), "web1", pid) for pid in range(5)]
    control = Scripted(
        Answer(processes[0], "failed", (good, bad), seconds=0.1),
        Answer(processes[1], "failed", error="SettingsError: wrong", seconds=0.1),
        Answer(processes[2], "silent", error="it hung up"),
        done(processes[3], good),
        done(processes[4]),
        problems=["the broker is down: \x1b[31m"],
    )
    assert terminal.run("reset", control, timeout=2.5) == 1
    assert [line.split("  ", 1)[0] for line in terminal.out] == [
        "web1:0", "web1:0", "web1:1", "web1:2", "web1:3", "web1:4",
    ]  # fmt: skip
    assert terminal.out[1].endswith("audit    failed: OSError: no way")
    assert terminal.out[2].endswith("failed: SettingsError: wrong")
    assert terminal.out[3].endswith("silent: it hung up; it may carry it out later")
    assert terminal.out[5].endswith("no pools")
    assert terminal.err == [
        r"the broker is down: \x1b[31m",
        "reset failed in 2 of 5 processes: web1:0, web1:1",
        "1 of 5 processes did not answer within 2.5 s: web1:2",
    ]


def test_of_many_failures_some_are_named(terminal: Terminal) -> None:
    silent = [Answer(Process(str(pid), "h", pid), "silent") for pid in range(12)]
    assert terminal.run("status", Scripted(*silent)) == 1
    [line] = terminal.err
    assert line.endswith("h:8, h:9, 2 more")
    assert len(terminal.out) == 13


def test_rows_without_some_keys_are_shown(terminal: Terminal) -> None:
    assert terminal.run("status", Scripted(done(WORKER, {"alias": "default"}))) == 0
    assert columns(terminal.out, "ALIAS", "LIMIT", "IDLE") == [["default", "–", "–"]]
    assert terminal.run("reset", Scripted(done(WORKER, {"alias": "default"}))) == 0


def test_lines_can_be_painted(terminal: Terminal) -> None:
    terminal.paint = lambda kind, line: f"<{kind}>{line}"
    bad = {"alias": "audit", "ok": False, "error": "no"}
    terminal.run("status", Scripted(done(WORKER, status_row(), status_row(suspended=True))))
    terminal.run("ping", Scripted(Answer(WORKER, "failed", (bad,), seconds=0.1)))
    terminal.run("resume", Scripted(done(WORKER, {"alias": "a", "ok": True})))
    assert [line.partition(">")[0][1:] for line in terminal.out] == [
        "head", "plain", "bad", "bad", "good",
    ]  # fmt: skip


def test_control_characters_do_not_reach_the_terminal(terminal: Terminal) -> None:
    process = Process("w", "web\x1b[31m1", 4711, "gun\x07icorn")
    row = {"alias": "red\x1b", "ok": False, "error": "no\x07 \u202eway"}
    for command in ("ping", "status", "reset"):
        terminal.run(command, Scripted(Answer(process, "failed", (row,), "x\x1b]0;", 0.1)))
    terminal.run("reset", Scripted(done(process)), dry_run=True, using=["default"])
    assert all(line.isprintable() for line in terminal.out + terminal.err)
    assert r"no\x07 \u202eway" in "".join(terminal.out)


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_json_is_one_document(terminal: Terminal) -> None:
    control = Scripted(done(WORKER, status_row()), Answer(OTHER, "silent"), problems=["no"])
    assert terminal.run("status", control, format="json") == 1
    [text] = terminal.out
    assert text.isascii()
    document = json.loads(text)
    assert (document["action"], document["ok"], document["problems"]) == ("status", False, ["no"])
    assert document["note"] is None
    first, second = document["processes"]
    assert first["process"] == {
        "name": "w1", "host": "web1", "pid": 4711, "server": "gunicorn", "kind": "gthread worker",
        "started": 1000.0, "version": "0.1.0",
    }  # fmt: skip
    assert first["rows"] == [status_row()]
    assert (second["outcome"], second["rows"], second["seconds"]) == ("silent", [], None)


@pytest.mark.parametrize(
    "command, row, said",
    [
        ("suspend", {"before": None}, "suspended"),
        ("suspend", {"before": "wait"}, "was suspended already"),
        ("suspend", {"before": "fail"}, "was suspended already; callers now wait"),
        ("resume", {"before": "fail"}, "resumed"),
        ("resume", {"before": None}, "was not suspended"),
        # Of an older version.
        ("suspend", {}, "suspended"),
        ("resume", {}, "resumed"),
        ("limit", {"before": 5, "limit": 3, "lent": 0}, "limit 3, was 5"),
        ("limit", {"before": 3, "limit": 3, "lent": 4}, "limit 3, as before, 1 lent will be closed when it comes back"),
        ("reset", {"closed": 0, "lent": 0}, "nothing to close: no connection was open"),
        ("reset", {"closed": 0, "lent": 1}, "closed 0 idle connections, 1 lent will be closed when it comes back"),
        ("reset", {"closed": 0, "lent": 1, "shared_with": "default"}, "shares the pool of default"),
        ("reload", {"change": "gone", "closed": 0, "lent": 0}, "gone"),
        ("reload", {"change": "gone", "closed": 1}, "gone: closed 1 idle connection; using it fails from now on"),
    ],
)  # fmt: skip
def test_the_output_says_what_was_done(
    terminal: Terminal, command: str, row: dict[str, Any], said: str
) -> None:
    given = {"limit": 3} if command == "limit" else {}
    assert (
        terminal.run(command, Scripted(done(WORKER, {"alias": "a", "ok": True, **row})), **given)
        == 0
    )
    assert terminal.out == [f"web1:4711  gunicorn gthread worker  a  {said}"]


def test_a_failed_row_names_user_and_broker_as_a_good_one_does(terminal: Terminal) -> None:
    broker = "amqp://shop:**@mq//"
    refused = {"alias": "a", "ok": False, "broker": broker, "error": "AccessRefused: (403) no"}
    down = {
        **refused,
        "error": f"BrokerUnreachable: pool {broker!r}: cannot open a connection: refused",
    }
    good = {"alias": "a", "ok": True, "seconds": 0.0012, "broker": broker}
    answer = Answer(WORKER, "failed", (refused, down, good))
    assert terminal.run("ping", Scripted(answer)) == 1
    assert [
        line.removeprefix("web1:4711  gunicorn gthread worker  a  ") for line in terminal.out
    ] == [
        f"failed: AccessRefused: (403) no  {broker}",
        f"failed: BrokerUnreachable: cannot open a connection: refused  {broker}",
        f"ok in 1.2 ms  {broker}",
    ]


# -- who is asked, and for what ----------------------------------------------------------------------------------------


def test_arguments_are_passed_on(terminal: Terminal) -> None:
    control = Scripted(done(WORKER))
    pools = Pools(default="memory://", audit="memory://")
    terminal.run(
        "limit", control, pools, limit=7, using=["audit", "audit"], process=["4711"], host=["web1", "web1"],
        timeout=1.5,
    )  # fmt: skip
    terminal.run("suspend", control, pools, mode="fail")
    assert control.asked == [
        Request(
            command="limit", limit=7, using=("audit",), processes=("4711",), hosts=("web1",), timeout=1.5
        ),
        Request(command="suspend", mode="fail"),
    ]  # fmt: skip


CHANGING = [command for command in command_line.COMMANDS if command not in READ_ONLY]


def arguments(command: str) -> dict[str, Any]:
    return {"limit": 3} if command == "limit" else {}


@pytest.mark.parametrize("broadcast", [None, "default"])
def test_status_of_no_process_is_no_error(terminal: Terminal, broadcast: str | None) -> None:
    control = Scripted(broadcast=broadcast)
    control.reasons = ["3 processes of user 'www-data' are there: run it as that user"]
    said = NOBODY if broadcast is None else NOBODY.replace(" here", "")
    assert terminal.run("status", control) == 0
    assert terminal.run("status", control, dry_run=True) == 0
    assert (terminal.out, terminal.err) == ([said, *control.reasons] * 2, [])
    terminal.out.clear()
    assert terminal.run("status", control, format="json") == 0
    document = json.loads(terminal.out[0])
    assert (document["ok"], document["processes"]) == (True, [])
    assert document["note"] == f"{said}; {control.reasons[0]}"


@pytest.mark.parametrize("command", CHANGING)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_change_in_no_process_is_an_error(
    terminal: Terminal, command: str, dry_run: bool
) -> None:
    control = Scripted()
    control.reasons = ["2 processes use another key: is the secret the same here?"]
    given = {**arguments(command), "dry_run": dry_run}
    assert terminal.run(command, control, **given) == 3
    assert (terminal.out, terminal.err) == ([], [NOBODY, *control.reasons])
    terminal.err.clear()
    assert terminal.run(command, control, format="json", **given) == 3
    document = json.loads(terminal.out[0])
    assert (document["ok"], document["note"]) == (False, "; ".join(terminal.err))
    terminal.err.clear()
    terminal.out.clear()

    assert terminal.run(command, control, allow_none=True, **given) == 0
    assert terminal.run(command, control, allow_none=True, expect=2, **given) == 0
    assert (terminal.out, terminal.err) == ([NOBODY, *control.reasons] * 2, [])
    terminal.out.clear()
    assert terminal.run(command, control, allow_none=True, format="json", **given) == 0
    assert json.loads(terminal.out[0])["ok"] is True


def test_a_command_that_reached_no_process_is_not_ok_from_python_either() -> None:
    for command in CHANGING:
        assert not Answers(Request(command=command, **arguments(command))).ok
    for command in READ_ONLY:
        assert Answers(Request(command=command)).ok


@pytest.mark.parametrize("command", command_line.COMMANDS)
def test_fewer_than_expected(terminal: Terminal, command: str) -> None:
    row = {"alias": "default", "ok": True, "seconds": 0.001}
    control = Scripted(done(WORKER, row), done(OTHER, row))
    given = arguments(command)
    assert terminal.run(command, control, expect=2, **given) == 0
    assert terminal.run(command, control, expect=1, **given) == 0
    assert terminal.err == []
    control.reasons = ["1 process listens in /run/shop: set DIRECTORY to it"]
    for options in ({}, {"allow_none": True}, {"dry_run": True}, {"format": "json"}):
        terminal.out.clear()
        assert terminal.run(command, control, expect=3, **options, **given) == 4
        assert terminal.err == ["3 processes were expected, and 2 answered", *control.reasons]
        terminal.err.clear()
    assert json.loads(terminal.out[0])["ok"] is False


def test_a_silent_process_does_not_count_as_an_answer(terminal: Terminal) -> None:
    control = Scripted(done(WORKER), Answer(OTHER, "silent"))
    assert terminal.run("reset", control, expect=2) == 1
    assert terminal.err == [
        "1 of 2 processes did not answer within 5 s: web2:4712",
        "2 processes were expected, and 1 answered",
    ]


def test_expect_applies_to_commands_that_only_read(terminal: Terminal) -> None:
    for command in READ_ONLY:
        assert terminal.run(command, Scripted(), expect=1) == 3
    # A ping of the command's own process is no answer of any other one.
    assert terminal.err[-1] == f"{NOBODY}; these are pings of this command's own process"
    [line] = terminal.out
    assert " ok in " in line


def test_no_pools_are_configured(terminal: Terminal) -> None:
    for command in ("status", "ping"):
        assert terminal.run(command, Scripted(), Pools()) == 0
    assert terminal.out == ["no pools are configured"] * 2


def test_ping_without_processes_pings_from_this_process(terminal: Terminal) -> None:
    pools = Pools(good="memory://", bad=f"amqp://guest:{SECRET}@127.0.0.1:1//")
    assert terminal.run("ping", Scripted(), pools, using=["good"]) == 0
    note, line = terminal.out
    assert note == f"{NOBODY}; these are pings of this command's own process"
    assert line.startswith(f"{socket.gethostname()}:{os.getpid()}  this command  good  ok in ")
    terminal.out.clear()

    assert terminal.run("ping", Scripted(), pools, timeout=30) == 1
    _, good, bad = terminal.out
    assert good.index("ok in") == bad.index("failed: BrokerUnreachable")
    assert terminal.err == [f"ping failed in 1 of 1 process: {socket.gethostname()}:{os.getpid()}"]
    terminal.out.clear()

    assert terminal.run("ping", Scripted(), pools, timeout=30, format="json") == 1
    document = json.loads(terminal.out[0])
    assert [row["ok"] for row in document["processes"][0]["rows"]] == [True, False]
    assert document["note"].startswith(NOBODY)
    assert SECRET not in good + bad + terminal.out[0] + "".join(terminal.err)


def test_ping_asks_the_running_processes(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "ping", None)
    row = {"alias": "default", "ok": True, "seconds": 0.001, "broker": "memory://"}
    assert terminal.run("ping", Scripted(done(WORKER, row))) == 0
    [line] = terminal.out
    assert "web1:4711" in line


def test_control_that_is_turned_off_is_reported(terminal: Terminal) -> None:
    control = Scripted(done(WORKER), enabled=False)
    told = "control is turned off in KOMBU_POOLS_CONTROL, so no process listens"
    assert terminal.run("reset", control) == 1
    assert terminal.run("reset", control, dry_run=True) == 1
    assert (terminal.out, terminal.err) == ([], [told] * 2)
    assert terminal.run("ping", control) == 0
    note, line = terminal.out
    assert note.startswith(told)
    assert "this command" in line
    assert control.asked == []


def test_a_failure_to_ask_is_reported(terminal: Terminal) -> None:
    control = Scripted(done(WORKER))
    control.error = ControlError("/tmp/x is not ours")
    assert terminal.run("status", control) == 1
    assert terminal.run("status", control, dry_run=True) == 1
    assert (terminal.out, terminal.err) == ([], ["/tmp/x is not ours"] * 2)


# -- --dry-run ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_names_the_processes_that_would_be_sent_the_command(terminal: Terminal) -> None:
    control = Scripted(done(WORKER), done(OTHER))
    assert terminal.run("reset", control, dry_run=True) == 0
    head, *lines = terminal.out
    assert head == "would get the command: reset, all pools"
    assert columns(lines, "PROCESS", "SERVER", "VERSION") == [
        ["web1:4711", "gunicorn gthread worker", "0.1.0"],
        ["web2:4712", "celery worker", "0.1.0"],
    ]
    terminal.out.clear()
    assert terminal.run("reset", control, dry_run=True, using=["default"], format="json") == 0
    document = json.loads(terminal.out[0])
    assert (document["dry_run"], document["ok"], document["problems"]) == (True, True, [])
    assert [one["pid"] for one in document["processes"]] == [4711, 4712]
    control.problems = ("the broker is down",)
    terminal.out.clear()
    assert terminal.run("reset", control, dry_run=True) == 1
    assert (len(terminal.out), terminal.err) == (4, ["the broker is down"])
    control.problems = ()
    terminal.err.clear()
    named = {"process": ["4711", "w2", "4713"], "host": ["web1", "web3"]}
    assert terminal.run("reset", control, dry_run=True, **named) == 1
    assert terminal.err == [
        "no process of this project is there on host 'web3'",
        "no process of this project is there as process '4713'",
    ]
    assert control.asked == []


# -- --watch -----------------------------------------------------------------------------------------------------------


def looks(count: int) -> tuple[list[float], Callable[[float], None]]:
    """A pause that returns so many times, and then raises as at Ctrl-C; it keeps how long each one was."""
    waited: list[float] = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == count:
            raise KeyboardInterrupt

    return waited, pause


def test_watch_draws_over_the_screen(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "9")
    terminal.on_screen = True
    control = Scripted(done(WORKER, *[status_row(alias=f"a{n}") for n in range(9)]))
    waited, pause = looks(3)
    assert terminal.run("status", control, watch=True, pause=pause) == 0
    assert len(control.asked) == 3
    assert all(0 <= seconds <= 1 for seconds in waited)
    assert [text.startswith("\x1b[2J\x1b[H") for text in terminal.drawn] == [True, False, False]
    assert all(text.removeprefix("\x1b[2J").startswith("\x1b[H") for text in terminal.drawn)
    assert all(text.endswith("\x1b[J") for text in terminal.drawn)
    lines = terminal.drawn[-1].removesuffix("\x1b[J").removeprefix("\x1b[H").splitlines()
    assert "until Ctrl-C" in lines[0]
    assert lines[1].startswith("PROCESS")
    # Each of them takes two rows of the screen; one row is the cursor's.
    assert len(lines[1]) > 100
    assert [line[:4] for line in lines[2:]] == ["web1", "web1", "… 7 "]
    assert lines[-1] == "… 7 more lines\x1b[K"
    assert (terminal.out, terminal.hints) == ([], [])


def test_watch_shows_silent_processes_and_goes_on(terminal: Terminal) -> None:
    terminal.on_screen = True
    control = Scripted(Answer(WORKER, "silent"))
    _, pause = looks(2)
    assert terminal.run("status", control, watch=True, pause=pause) == 0
    assert "1 of 1 process did not answer within 5 s" in terminal.drawn[1]
    control.answers = ()
    _, pause = looks(1)
    assert terminal.run("status", control, watch=True, pause=pause) == 0
    assert NOBODY in terminal.drawn[2]


def test_watch_without_a_terminal_prints_each_frame(terminal: Terminal) -> None:
    control = Scripted(done(WORKER, status_row()))
    _, pause = looks(2)
    assert terminal.run("status", control, watch=True, pause=pause) == 0
    assert [line[:9] for line in terminal.out] == ["PROCESS  ", "web1:4711", ""] * 2
    terminal.out.clear()
    terminal.on_screen = True
    _, pause = looks(2)
    assert terminal.run("status", control, watch=True, format="json", pause=pause) == 0
    assert [json.loads(line)["ok"] for line in terminal.out] == [True, True]
    assert all("\n" not in line for line in terminal.out)
    assert terminal.drawn == []


# -- progress ----------------------------------------------------------------------------------------------------------


def test_progress_is_shown_on_a_terminal_and_cleared(terminal: Terminal) -> None:
    control = Scripted(done(WORKER), done(OTHER))
    assert terminal.run("reset", control) == 0
    assert terminal.hints == []
    terminal.on_screen = True
    assert terminal.run("reset", control) == 0
    assert terminal.hints == [
        "\r0 of 2 processes have answered…\x1b[K",
        "\r1 of 2 processes have answered…\x1b[K",
        "\r2 of 2 processes have answered…\x1b[K",
        "\r\x1b[K",
    ]
    terminal.hints.clear()
    assert terminal.run("reset", Scripted()) == 3
    assert "".join(terminal.hints) == ""


def test_an_answer_that_comes_late_draws_nothing(terminal: Terminal) -> None:
    terminal.on_screen = True
    late: list[Callable[[Answer], None]] = []

    class Hasty(Scripted):
        def ask(self, command: str, **arguments: Any) -> Answers:
            late.append(arguments["heard"])
            return super().ask(command, **arguments)

    terminal.run("reset", Hasty(done(WORKER)))
    before = list(terminal.hints)
    thread = threading.Thread(target=late[0], args=[done(OTHER)])
    thread.start()
    thread.join()
    assert terminal.hints == before
    assert before[-1] == "\r\x1b[K"


def test_ctrl_c_while_waiting_is_reported(terminal: Terminal) -> None:
    terminal.on_screen = True

    class Interrupted(Scripted):
        def ask(self, command: str, **arguments: Any) -> Answers:
            arguments["known"]([WORKER])
            raise KeyboardInterrupt

    assert terminal.run("reset", Interrupted()) == 1
    assert terminal.hints[-1] == "\r\x1b[K"
    assert terminal.err == ["interrupted: some processes may still carry out reset"]


# -- wrong use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command, options, complaints",
    [
        ("reset", {"expect": 0}, ["--expect takes a number of processes, 1 to 1000000, not 0; --allow-none allows"]),
        ("status", {"expect": 2, "watch": True}, ["--watch cannot be combined with --expect"]),
        (
            "explode",
            {},
            ["unknown command 'explode': expected one of status, reset, reload, ping, limit, suspend, resume"],
        ),
        ("ping", {"format": "xml"}, ["unknown format 'xml': expected one of table, json"]),
        ("ping", {"timeout": 0}, ["timeout must be a number of seconds above 0, and at most 3600, not 0"]),
        ("ping", {"timeout": "1"}, ["timeout: expected a number of seconds, got '1'"]),
        ("limit", {}, ["limit: expected a number from 1 to 10000, got None"]),
        ("limit", {"limit": -1}, ["limit: expected a number from 1 to 10000, got -1"]),
        ("limit", {"limit": 10**9}, ["limit: expected a number from 1 to 10000, got 1000000000"]),
        ("reset", {"limit": 4}, ["limit: 'reset' takes none"]),
        (
            "reset",
            {"process": ["x" * 300], "host": [""]},
            [f"processes: expected a name of 1 to 255 characters, got '{'x' * 79}…",
             "hosts: expected a name of 1 to 255 characters, got ''"],
        ),
        ("status", {"using": ["nope"]}, ["no broker pool is configured under 'nope' (configured: 'default')"]),
        ("reset", {"watch": True, "mode": "fail"},
         ["--watch can only be used with status", "--mode can only be used with suspend"]),
        ("status", {"watch": True, "dry_run": True}, ["--watch cannot be combined with --dry-run"]),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(
    terminal: Terminal, command: str, options: dict[str, Any], complaints: list[str]
) -> None:
    control = Scripted(done(WORKER))
    assert terminal.run(command, control, **options) == 2
    assert (terminal.out, control.asked) == ([], [])
    assert len(terminal.err) == len(complaints)
    for line, complaint in zip(terminal.err, complaints, strict=True):
        assert line.startswith(complaint)


def test_all_wrong_settings_are_reported(terminal: Terminal) -> None:
    pools = Pools(
        lambda: {"a": {"URL": "memory://", "LIMIT": -1}, "b": {"URL": f"nope://u:{SECRET}@h"}}
    )
    assert terminal.run("status", Scripted(), pools) == 2
    text = "\n".join(terminal.err)
    assert "['a']['LIMIT']" in text
    assert "['b']['URL']" in text
    assert SECRET not in text


def test_every_option_is_described_and_no_key_is_new_to_run() -> None:
    options = {option.key: option for option in command_line.OPTIONS}
    assert all(option.description for option in options.values())
    assert options["dry_run"].name == "dry-run"
    assert [name for name in command_line.COMMANDS if options["mode"].suits(name)] == ["suspend"]
    known = command_line.run.__kwdefaults__
    assert known is not None
    assert set(options) | {"limit", "pause", "is_program"} == set(known)


class _Stream:
    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def test_only_terminals_are_drawn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert command_line.is_terminal(_Stream(True))
    assert not command_line.is_terminal(_Stream(False))
    monkeypatch.setenv("TERM", "dumb")
    assert not command_line.is_terminal(_Stream(True))
