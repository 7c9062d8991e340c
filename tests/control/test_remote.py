"""Commands over a broker: which processes are found, answer or are silent, and what is left at the broker."""

from __future__ import annotations

import logging
import os
import threading
import time

import pytest

from kombu_pools_ext.aliases import Pools
from kombu_pools_ext.control.answer import Answer
from kombu_pools_ext.control.options import ControlSettings, parse_control, why_unsupported
from kombu_pools_ext.control.process_info import this_process
from kombu_pools_ext.control.project import Project
from kombu_pools_ext.control.remote import client as remote_client
from kombu_pools_ext.control.remote import listener as remote_listener
from kombu_pools_ext.control.remote.client import RemoteClient
from kombu_pools_ext.control.remote.connect import broadcast_settings
from kombu_pools_ext.control.remote.listener import MOST_AT_ONCE, listen
from kombu_pools_ext.control.remote.rabbitmq_mailbox import RabbitMailbox
from kombu_pools_ext.control.remote.redis_mailbox import RedisMailbox
from kombu_pools_ext.control.remote.signing import LARGEST
from kombu_pools_ext.control.request import Request
from kombu_pools_ext.errors import ControlError
from kombu_pools_ext.settings import PoolSettings, SettingsError
from tests.broker.common import PATIENCE, eventually
from tests.broker.rig import in_child, port_of, sockets_to
from tests.control.meeting import Meeting, Played, a_project

STATUS = Request(command="status")


def names(processes: object) -> list[str]:
    return [process.name for process in processes]  # type: ignore[attr-defined]


# -- who is there, and does it -------------------------------------------------------------------------


def test_all_processes_are_found_and_carry_out_the_command(meeting: Meeting) -> None:
    played = [meeting.play(name) for name in ("c", "a", "b")]
    asked = meeting.ask(Request(command="limit", limit=7, using=("default",)))
    assert asked.known is not None
    assert names(asked.known) == ["a", "b", "c"]
    assert asked.outcomes == dict.fromkeys("abc", "done")
    for one in played:
        [request] = one.done
        assert (request.command, request.limit, request.using) == ("limit", 7, ("default",))
        answer = asked.answers[one.process.name]
        assert answer.process == one.process
        assert answer.rows == ({"alias": "default", "ok": True},)
        assert answer.seconds is not None


def test_who_lists_the_processes(meeting: Meeting) -> None:
    played = [meeting.play(name, host) for name, host in (("a", "x"), ("b", "y"))]
    way = RemoteClient(meeting.project)
    assert way.who(STATUS, time.monotonic() + PATIENCE) == [one.process for one in played]
    request = Request(command="status", hosts=("y",))
    assert names(way.who(request, time.monotonic() + PATIENCE)) == ["b"]
    assert [one.done for one in played] == [[], []]


@pytest.mark.parametrize(
    "request_for, found",
    [
        (Request(command="reset", hosts=("x",)), ["a", "b"]),
        (Request(command="reset", processes=("b", "c")), ["b", "c"]),
        (Request(command="reset", hosts=("y",), processes=("a", "4711")), ["c"]),
        (Request(command="reset", hosts=("nowhere",)), []),
    ],
)
def test_the_named_processes_perform_the_command(
    meeting: Meeting, request_for: Request, found: list[str]
) -> None:
    played = [meeting.play(name, host) for name, host in (("a", "x"), ("b", "x"), ("c", "y"))]
    asked = meeting.ask(request_for)
    assert sorted(asked.answers) == found
    assert [one.process.name for one in played if one.done] == found


def test_processes_that_another_client_reaches_are_left_out(meeting: Meeting) -> None:
    left_out, other = meeting.play("a"), meeting.play("b")
    asked = meeting.ask(leave_out=lambda: {"a", "somebody who has not joined"})
    assert asked.outcomes == {"b": "done"}
    assert (len(left_out.done), len(other.done)) == (0, 1)


def test_a_command_ends_at_once_if_no_process_is_there(
    meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_client, "DISCOVERY_TIMEOUT", 600.0)
    began = time.monotonic()
    asked = meeting.ask(seconds=1200.0)
    assert asked.known == []
    assert time.monotonic() - began < PATIENCE


def test_a_command_ends_when_all_have_answered(
    meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_client, "DISCOVERY_TIMEOUT", 600.0)
    meeting.play("a")
    began = time.monotonic()
    assert meeting.ask(seconds=1200.0).outcomes == {"a": "done"}
    assert time.monotonic() - began < PATIENCE


def test_a_process_that_takes_too_long_is_silent(meeting: Meeting) -> None:
    quick, slow = meeting.play("quick"), meeting.play("slow")
    go_on = threading.Event()

    def take_long(request: Request) -> Answer:
        go_on.wait(PATIENCE)
        return Answer(slow.process, "done")

    slow.answers = take_long
    try:
        asked = meeting.ask(seconds=8.0)
        assert asked.outcomes == {"quick": "done", "slow": "silent"}
        assert asked.answers["slow"].seconds is None
        # It is at it still, and is found all the same.
        assert len(RemoteClient(meeting.project).who(STATUS, time.monotonic() + PATIENCE)) == 2
    finally:
        go_on.set()
    assert len(quick.done) == len(slow.done) == 1


def test_a_process_gets_the_time_that_is_left(meeting: Meeting) -> None:
    played = meeting.play("a")
    meeting.ask(Request(command="ping", timeout=2.0), seconds=PATIENCE)
    meeting.ask(Request(command="ping", timeout=3000.0), seconds=PATIENCE)
    first, second = played.done
    assert first.timeout == 2.0
    assert second.timeout < PATIENCE


def test_too_many_commands_at_once_are_refused(meeting: Meeting) -> None:
    played = meeting.play("a")
    go_on = threading.Event()

    def take_long(request: Request) -> Answer:
        go_on.wait(PATIENCE)
        return Answer(played.process, "done")

    played.answers = take_long
    outcomes: list[str] = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(meeting.ask().outcomes["a"]))
        for _ in range(MOST_AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(played.done) == MOST_AT_ONCE)
        answer = meeting.ask().answers["a"]
        assert answer.outcome == "failed"
        assert answer.error == f"it is busy with {MOST_AT_ONCE} other commands"
    finally:
        go_on.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert outcomes == ["done"] * MOST_AT_ONCE
    played.answers = lambda request: Answer(played.process, "done")
    assert meeting.ask().outcomes == {"a": "done"}


def test_failures_are_reported(meeting: Meeting, caplog: pytest.LogCaptureFixture) -> None:
    played = meeting.play("a")

    def fail(request: Request) -> Answer:
        raise RuntimeError("it broke")

    played.answers = fail
    answer = meeting.ask().answers["a"]
    assert (answer.outcome, answer.error) == ("failed", "RuntimeError: it broke")
    assert "it broke" in caplog.text


def test_an_answer_may_be_large_but_not_too_large(meeting: Meeting) -> None:
    played = meeting.play("a")
    played.answers = lambda request: Answer(
        played.process, "done", ({"x": "x" * (LARGEST - 1000)},)
    )
    assert meeting.ask().outcomes == {"a": "done"}
    played.answers = lambda request: Answer(played.process, "done", ({"x": "x" * LARGEST},))
    answer = meeting.ask().answers["a"]
    assert answer.outcome == "failed"
    assert answer.error is not None
    assert answer.error.startswith("it is done, but the answer has")


def test_two_projects_on_one_broker(meeting: Meeting) -> None:
    own = meeting.play("a")
    with Meeting(meeting.url) as other:
        others = other.play("b")
        assert other.ask().outcomes == {"b": "done"}
        assert meeting.ask().outcomes == {"a": "done"}
    assert len(own.done) == len(others.done) == 1


def test_an_exhausted_pool_can_be_asked(meeting_url: str) -> None:
    project, pools = a_project(meeting_url, limit=1)
    listener = listen(project)
    try:
        assert listener.joined.wait(PATIENCE)
        with pools.connections["default"].acquire():
            with Meeting(meeting_url) as asking:
                asking.project = project
                [answer] = asking.ask().answers.values()
        assert answer.outcome == "done"
        assert answer.process == this_process()
        [row] = answer.rows
        assert (row["alias"], row["lent"], row["size"], row["opened"]) == ("default", 1, 1, 1)
    finally:
        listener.stop(PATIENCE)


def test_a_reset_closes_connections(meeting_url: str) -> None:
    project, pools = a_project(meeting_url)
    listener = listen(project)
    try:
        assert listener.joined.wait(PATIENCE)
        with pools.connections["default"].acquire():
            pass
        with Meeting(meeting_url) as asking:
            asking.project = project
            asked = asking.ask(Request(command="reset"))
        assert list(asked.outcomes.values()) == ["done"]
        assert pools.connections["default"].stats().closed["drained"] == 1
    finally:
        listener.stop(PATIENCE)


# -- messages that nobody should have sent -------------------------------------------------------------


def told(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(
        words in record.getMessage()
        for record in caplog.records
        if record.name == "kombu_pools_ext.control" and record.levelno == logging.WARNING
    )


def command(meeting: Meeting, played: Played, answer_to: str) -> dict[str, object]:
    return {
        "names": [played.process.name],
        "request": Request(command="reset").as_dict(),
        "answer_to": answer_to,
        "by": "a test",
    }


def test_forged_messages_do_nothing(meeting: Meeting, caplog: pytest.LogCaptureFixture) -> None:
    played = meeting.play("a")
    with meeting.mailbox() as (mailbox, signer):
        data, _ = signer.make("do", command(meeting, played, mailbox.address))
        for forged in (
            b"",
            b"garbage",
            b"\x80\x04pickle",
            data[65:],
            data[:-1],
            data.replace(b"reset", b"limit"),
            b"0" * 64 + data[64:],
            b"x" * (LARGEST + 1),
        ):
            mailbox.send_to_all(forged)
    # Messages are taken in their order: those before this one have been.
    assert meeting.ask().outcomes == {"a": "done"}
    assert [request.command for request in played.done] == ["status"]
    assert told(caplog, "a message over the broker is ignored") == 1


def test_a_replayed_command_does_nothing(
    meeting: Meeting, caplog: pytest.LogCaptureFixture
) -> None:
    played = meeting.play("a")
    with meeting.mailbox() as (mailbox, signer):
        data, _ = signer.make("do", command(meeting, played, mailbox.address))
        for _ in range(3):
            mailbox.send_to_all(data)
    assert meeting.ask().outcomes == {"a": "done"}
    assert [request.command for request in played.done] == ["reset", "status"]
    assert told(caplog, "a second time") == 1


def test_an_expired_command_does_nothing(
    meeting: Meeting, caplog: pytest.LogCaptureFixture
) -> None:
    played = meeting.play("a")
    with meeting.mailbox() as (mailbox, signer):
        signer._clock = lambda: time.time() - 60
        for _ in range(2):
            mailbox.send_to_all(signer.make("do", command(meeting, played, mailbox.address))[0])
        mailbox.send_to_all(signer.make("who", {"answer_to": mailbox.address})[0])
    assert meeting.ask().outcomes == {"a": "done"}
    assert [request.command for request in played.done] == ["status"]
    assert told(caplog, "60 s behind this machine's clock") == 1


def test_an_invalid_command_is_answered_with_the_reason(meeting: Meeting) -> None:
    played = meeting.play("a")
    with meeting.mailbox() as (mailbox, signer):
        for wrong, words in (
            ({"command": "explode"}, "unknown command 'explode'"),
            ({"command": "limit", "limit": -1}, "limit: expected a number"),
            ("reset", "expected a command"),
            (None, "expected a command"),
        ):
            content = {**command(meeting, played, mailbox.address), "request": wrong}
            data, number = signer.make("do", content)
            mailbox.send_to_all(data)
            [answer] = mailbox.receive(time.monotonic() + PATIENCE)
            message = signer.open(answer)
            assert (message.kind, message.about) == ("did", number)
            assert message.content["answer"]["outcome"] == "failed"
            assert words in message.content["answer"]["error"]
    assert played.done == []


def test_a_message_that_is_not_a_command_is_ignored(meeting: Meeting) -> None:
    played = meeting.play("a")
    with meeting.mailbox() as (mailbox, signer):
        good = command(meeting, played, mailbox.address)
        for kind, content in (
            ("dance", good),
            ("did", good),
            ("do", {**good, "answer_to": None}),
            ("do", {**good, "names": None}),
            ("do", {**good, "names": "a"}),
            ("do", {**good, "names": ["b"]}),
            ("do", {**good, "names": []}),
        ):
            mailbox.send_to_all(signer.make(kind, content)[0])
    assert meeting.ask().outcomes == {"a": "done"}
    assert len(played.done) == 1


def test_answers_to_no_question_are_ignored(
    meeting: Meeting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that are forged or damaged, or belong to another command."""
    monkeypatch.setattr(remote_client, "_log", type(remote_client._log)())
    played = meeting.play("a")

    def answer(request: Request) -> Answer:
        address, number = addresses[-1]
        with meeting.mailbox() as (mailbox, signer):
            process = {"name": "a", "host": "here", "pid": 4711}
            other = {"name": "b", "host": "here", "pid": 1}
            done = {"outcome": "done", "rows": [], "error": None}
            for data in (
                b"garbage",
                signer.make("did", {"process": process, "answer": done}, "another")[0],
                signer.make("did", {"process": process, "answer": done})[0],
                signer.make("did", {"process": other, "answer": done}, number)[0],
                signer.make("did", {"process": 1, "answer": done}, number)[0],
                signer.make("did", {"process": process, "answer": {"outcome": "!"}}, number)[0],
            ):
                mailbox.send(address, data)
            # Until those have been heard, for the true answer would end it.
            sent.wait(PATIENCE)
        return Answer(played.process, "done")

    addresses: list[tuple[str, str]] = []
    sent = threading.Event()
    made = remote_client._Exchange._sign

    def noting(
        call: remote_client._Exchange, kind: str, content: dict[str, object]
    ) -> tuple[bytes, str]:
        data, number = made(call, kind, content)
        addresses.append((call._mailbox.address, number))
        return data, number

    monkeypatch.setattr(remote_client._Exchange, "_sign", noting)
    played.answers = answer
    try:
        asked = meeting.ask()
    finally:
        sent.set()
    # The last one is its own, only damaged: there will be no other.
    [one] = asked.answers.values()
    assert (one.outcome, one.error) == ("failed", "its answer is not valid")
    assert told(caplog, "an answer over the broker is ignored: it is not signed") == 1
    assert told(caplog, "does not say which process it is") == 1


@pytest.mark.parametrize("off, words", [(100, "100 s behind"), (-100, "100 s ahead of")])
def test_a_machine_with_a_wrong_clock_says_so(meeting: Meeting, off: float, words: str) -> None:
    wrong = meeting.play("wrong", clock=lambda: time.time() + off)
    right = meeting.play("right")
    asked = meeting.ask()
    assert asked.outcomes == {"wrong": "failed", "right": "done"}
    error = asked.answers["wrong"].error
    assert error is not None
    assert words in error.replace("101 s", "100 s").replace("99 s", "100 s")
    assert wrong.done == []
    assert len(right.done) == 1


# -- processes come and go -----------------------------------------------------------------------------


def test_a_stopped_listener_is_no_longer_found(meeting: Meeting) -> None:
    meeting.play("a")
    meeting.play("b")
    meeting.listeners[0].stop(PATIENCE)
    # Its goodbye is answered before stop() returns, but what hung on it may go a moment later.
    eventually(lambda: meeting.ask().outcomes == {"b": "done"})
    meeting.listeners[0].stop(PATIENCE)


@pytest.mark.forks
def test_a_forked_child_closes_its_parents_listener(meeting: Meeting) -> None:
    played = meeting.play("a")
    port = port_of(meeting.url)
    inherited = set(sockets_to(port))
    assert inherited

    def look() -> tuple[list[int], bool]:
        [listener] = meeting.listeners
        listener.stop(0.0)
        return [one for one in sockets_to(port) if one in inherited], listener._stopping

    assert in_child(look) == ([], True)
    assert in_child(os.getpid) != os.getpid()
    assert set(sockets_to(port)) >= inherited
    assert meeting.ask().outcomes == {"a": "done"}
    assert len(played.done) == 1


def test_without_threads_nothing_listens_and_commands_run_at_once(
    meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in uWSGI's master. If threads can be started later, commands run at once."""
    played = meeting.play("a")
    monkeypatch.setattr(remote_listener, "spawn_thread", lambda work, name: False)
    listener = listen(meeting.project)
    assert listener._ended.is_set()
    listener.stop(PATIENCE)
    assert meeting.ask().outcomes == {"a": "done"}
    assert len(played.done) == 1


def test_a_connection_that_was_closed_is_not_opened_again(meeting: Meeting) -> None:
    with meeting.mailbox() as (mailbox, _):
        mailbox.close(0.0)
        with pytest.raises(Exception, match=r"closed|None|[Cc]onnection"):
            mailbox.receive(time.monotonic() + PATIENCE)


def test_a_mailbox_that_cannot_be_made_leaves_no_socket(
    meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(mailbox: object) -> None:
        raise OSError("no more of these")

    monkeypatch.setattr(RabbitMailbox, "_prepare", fail)
    monkeypatch.setattr(RedisMailbox, "_prepare", fail)
    before = set(sockets_to(port_of(meeting.url)))
    with pytest.raises(ControlError, match="no more of these"):
        meeting.ask()
    assert set(sockets_to(port_of(meeting.url))) <= before


# -- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["amqp://h//", "amqps://h//", "pyamqp://h//", "redis://h/0", "rediss://h/0", "sentinel://h"],
)
def test_brokers_that_carry_commands(url: str) -> None:
    assert why_unsupported(PoolSettings.of(url=url)) is None
    settings = {"default": PoolSettings.of(url=url)}
    parse_control({"BROADCAST": "default"}, settings, secret="x" * 16)


@pytest.mark.parametrize("url", ["memory://", "filesystem://", "sqs://"])
def test_brokers_that_cannot_carry_commands(url: str) -> None:
    settings = PoolSettings.of(url=url)
    why = why_unsupported(settings)
    assert why is not None
    assert url.partition(":")[0] in why
    with pytest.raises(SettingsError, match="RabbitMQ or Redis"):
        parse_control({"BROADCAST": "default"}, {"default": settings})
    pools = Pools(default=settings)
    project = Project(ControlSettings(broadcast="default"), "secret")
    project.pools.add(pools)
    with pytest.raises(ControlError, match="RabbitMQ or Redis"):
        RemoteClient(project).who(STATUS, time.monotonic() + PATIENCE)


def test_broadcast_with_an_unknown_alias_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    project = Project(ControlSettings(broadcast="nowhere"), "secret")
    pools = Pools(default="amqp://localhost//")
    broken = Pools(lambda: {"default": 1})
    project.pools.update([pools, broken])
    with pytest.raises(ControlError, match="'nowhere'"):
        broadcast_settings(project)
    listener = listen(project)
    try:
        eventually(lambda: told(caplog, "no pool is configured under that alias"))
    finally:
        listener.stop(PATIENCE)


def test_each_outage_is_logged_once(
    nowhere: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one line, however often it tries. After a connection that has lasted, a failure is a new outage."""
    tries = []
    opened = remote_listener.open_mailbox
    monkeypatch.setattr(
        remote_listener, "open_mailbox", lambda *given: tries.append(given) or opened(*given)
    )
    monkeypatch.setattr(remote_listener, "LONGEST_PAUSE", 0.01)
    project, pools = a_project(f"amqp://127.0.0.1:{nowhere}//")
    listener = listen(project)
    try:
        eventually(lambda: len(tries) >= 5)
        assert told(caplog, "cannot be reached from other machines for now") == 1
        monkeypatch.setattr(remote_listener, "STABLE_AFTER", 0.0)
        eventually(lambda: told(caplog, "cannot be reached from other machines for now") >= 3)
    finally:
        listener.stop(PATIENCE)
    assert pools.settings


def test_without_a_secret(meeting_url: str) -> None:
    pools = Pools(default=meeting_url)
    project = Project(ControlSettings(broadcast="default"), None, "some path")
    project.pools.add(pools)
    with pytest.raises(ControlError, match="SECRET_KEY"):
        RemoteClient(project).who(STATUS, time.monotonic() + PATIENCE)


def test_a_broker_that_is_down_is_named_without_its_password(nowhere: int) -> None:
    url = f"amqp://me:s3cr3t-word@127.0.0.1:{nowhere}//"
    project, pools = a_project(url)
    with pytest.raises(ControlError) as raised:
        RemoteClient(project).who(STATUS, time.monotonic() + PATIENCE)
    assert "'default'" in str(raised.value)
    assert str(nowhere) in str(raised.value)
    assert "s3cr3t" not in str(raised.value)
    with pytest.raises(ControlError, match="no time is left"):
        RemoteClient(project).who(STATUS, time.monotonic())
    assert pools.settings
