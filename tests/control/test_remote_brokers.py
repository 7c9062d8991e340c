"""Commands over brokers that stop, fall silent or accept nothing; killed processes; and what is left at the broker."""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kombu_pools_ext.control import Control
from kombu_pools_ext.control.remote import client as remote_client
from kombu_pools_ext.control.remote import listener as remote_listener
from kombu_pools_ext.control.remote import rabbitmq_mailbox, redis_mailbox
from kombu_pools_ext.control.remote.client import RemoteClient
from kombu_pools_ext.control.remote.listener import listen
from kombu_pools_ext.control.request import Request
from kombu_pools_ext.errors import ControlError
from tests.broker.common import PATIENCE, eventually
from tests.broker.rig import Node, port_of, through
from tests.brokers import PrivateRabbitMQ, PrivateRedis
from tests.brokers.server import Server
from tests.control.meeting import Meeting, a_project, real_process
from tests.proxy import TO_CLIENT, Frame, Proxy

STATUS = Request(command="status")
#: A node that starts on a busy machine, and whoever tries to connect to it at random intervals.
LONG = 120.0


@pytest.fixture(
    params=[
        pytest.param("private_rabbitmq", marks=pytest.mark.broker),
        pytest.param("private_redis", marks=pytest.mark.redis),
    ]
)
def server(request: pytest.FixtureRequest) -> PrivateRabbitMQ | PrivateRedis:
    """A private broker of each kind."""
    found: PrivateRabbitMQ | PrivateRedis = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process that has lost the broker try again within a second."""
    monkeypatch.setattr(remote_listener, "LONGEST_PAUSE", 1.0)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "kombu_pools_ext.control" and record.levelno >= logging.WARNING
    ]


def who(meeting: Meeting, seconds: float = PATIENCE) -> list[str]:
    way = RemoteClient(meeting.project)
    return [process.name for process in way.who(STATUS, time.monotonic() + seconds)]


# -- the broker ends -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("soon")
def test_after_an_outage_all_are_there_again(
    server: PrivateRabbitMQ | PrivateRedis, caplog: pytest.LogCaptureFixture
) -> None:
    with Meeting(server.url) as meeting:
        meeting.play("a")
        server.kill()
        [listener] = meeting.listeners
        eventually(lambda: not listener.joined.is_set())
        with pytest.raises(ControlError, match=f"{server.port}"):
            RemoteClient(meeting.project).who(STATUS, time.monotonic() + PATIENCE)
        # It has tried more than once, and said it once.
        eventually(lambda: warnings(caplog))
        server.start()
        assert listener.joined.wait(LONG)
        assert meeting.ask().outcomes == {"a": "done"}
        [line] = warnings(caplog)
        assert "cannot be reached from other machines for now" in line
        assert "guest:guest" not in line


@pytest.mark.slow
def test_stopping_during_an_outage(server: PrivateRabbitMQ | PrivateRedis) -> None:
    with Meeting(server.url) as meeting:
        meeting.play("a")
        [listener] = meeting.listeners
        server.kill()
        eventually(lambda: not listener.joined.is_set())
        listener.stop(PATIENCE)
        assert listener._ended.is_set()


@pytest.mark.slow
def test_a_silent_broker_is_disconnected(
    server: PrivateRabbitMQ | PrivateRedis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_mailbox, "PING_INTERVAL", 0.5)
    with Meeting(server.url, HEARTBEAT=1) as meeting:
        meeting.play("a")
        [listener] = meeting.listeners
        server.freeze()
        try:
            eventually(lambda: not listener.joined.is_set(), LONG)
            eventually(lambda: warnings(caplog))
            assert "has sent nothing" in warnings(caplog)[0]
            began = time.monotonic()
            with pytest.raises(ControlError):
                RemoteClient(meeting.project).who(STATUS, time.monotonic() + 1.0)
            assert time.monotonic() - began < PATIENCE
        finally:
            server.thaw()
        assert listener.joined.wait(LONG)


@pytest.mark.slow
def test_a_quiet_connection_is_kept(
    server: PrivateRabbitMQ | PrivateRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lasts for many heartbeats or pings without a message."""
    monkeypatch.setattr(redis_mailbox, "PING_INTERVAL", 0.2)
    with Meeting(server.url, HEARTBEAT=1) as meeting:
        meeting.play("a")
        [listener] = meeting.listeners
        lost = threading.Event()
        monkeypatch.setattr(listener, "_log_failure", lambda error: lost.set())
        assert not lost.wait(5.0)
        assert meeting.ask().outcomes == {"a": "done"}


@pytest.mark.slow
def test_without_heartbeats(private_rabbitmq: PrivateRabbitMQ) -> None:
    with Meeting(private_rabbitmq.url, HEARTBEAT=0) as meeting:
        meeting.play("a")
        assert meeting.ask().outcomes == {"a": "done"}


def test_a_connection_lost_while_waiting_for_answers_is_reported(meeting_url: str) -> None:
    with Proxy("127.0.0.1", port_of(meeting_url)) as proxy, Meeting(meeting_url) as meeting:
        played = meeting.play("a")
        go_on = threading.Event()
        answers = played.answers

        def cut(request: Request) -> object:
            proxy.cut()
            go_on.wait(PATIENCE)
            return answers(request)

        played.answers = cut  # type: ignore[assignment]
        asking = Meeting(through(proxy, meeting_url))
        asking.project.key = meeting.project.key  # type: ignore[method-assign]
        asking.project.name = meeting.project.name
        try:
            asked = asking.ask(problem=ControlError)
        finally:
            go_on.set()
        assert asked.outcomes == {"a": "silent"}
        assert asked.problem is not None
        assert "cannot be reached" in asked.problem


# -- processes end -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_process_is_gone_and_leaves_nothing(meeting: Meeting) -> None:
    secret = secrets.token_hex()
    with Meeting(meeting.url, secret) as asking:
        with real_process(meeting.url, secret) as (first, one):
            with real_process(meeting.url, secret) as (_, other):
                eventually(lambda: sorted(who(asking)) == sorted([one, other]))
                asked = asking.ask(Request(command="ping"))
                assert asked.outcomes == {one: "done", other: "done"}
                first.kill()
                first.wait(PATIENCE)
                eventually(lambda: asking.ask().outcomes == {other: "done"})
        eventually(lambda: not asking.left())
        assert who(asking) == []


@pytest.mark.slow
def test_nothing_is_left_at_rabbitmq(private_rabbitmq: PrivateRabbitMQ) -> None:
    node = private_rabbitmq
    secret = secrets.token_hex()
    with Meeting(node.url, secret) as asking, real_process(node.url, secret) as (process, name):

        def ours() -> list[str]:
            names = [*node.list_queues(), *node.list_exchanges()]
            return sorted(name for name in names if asking.project.name in name)

        assert asking.ask().outcomes == {name: "done"}
        # Its own queue and the roll; those of whoever asked have gone with him.
        eventually(lambda: len(ours()) == 2, LONG)
        process.kill()
        process.wait(PATIENCE)
        eventually(lambda: not ours(), LONG)


@pytest.mark.slow
def test_a_client_that_watches_all_of_redis_is_no_process(redis_url: str) -> None:
    """Redis counts a client such as `redis-cli psubscribe '*'` among the receivers of a message."""
    import redis

    with Meeting(redis_url) as meeting, redis.Redis.from_url(redis_url) as client:
        meeting.play("a")
        with client.pubsub() as stranger:
            stranger.psubscribe("*", "kombu-pools.*")
            eventually(lambda: (stranger.get_message(timeout=PATIENCE) or {}).get("type"))
            began = time.monotonic()
            asked = meeting.ask()
        # Nobody is waited for, and nothing is the matter.
        assert (asked.outcomes, asked.problem) == ({"a": "done"}, None)
        assert time.monotonic() - began < PATIENCE / 4


def test_without_the_right_to_pubsub_the_receivers_of_a_publish_are_counted(
    private_redis: PrivateRedis,
) -> None:
    import redis

    with redis.Redis(port=private_redis.port) as client:
        # Those that docs/explanation/control-broadcast.md names, but for one.
        needed = ["+subscribe", "+publish", "+ping", "+client|setname"]
        rules = ["on", ">word", "&kombu-pools.*", *needed]
        client.execute_command("ACL SETUSER", "shop", *rules)
    with Meeting(f"redis://shop:word@127.0.0.1:{private_redis.port}") as meeting:
        meeting.play("a")
        asked = meeting.ask()
        assert (asked.outcomes, asked.problem) == ({"a": "done"}, None)


def test_processes_with_another_key_at_redis_are_counted(redis_url: str) -> None:
    with Meeting(redis_url) as meeting, Meeting(redis_url) as other:
        looking = RemoteClient(meeting.project)
        before = looking.count_others(time.monotonic() + PATIENCE)
        meeting.play("a")
        other.play("b")
        other.play("c")
        assert looking.count_others(time.monotonic() + PATIENCE) == before + 2
        assert any(
            "at the broker: is the secret the same here?" in one
            for one in Control(meeting.project).likely_reasons()
        )


def test_nothing_is_left_at_redis(private_redis: PrivateRedis) -> None:
    import redis

    secret = secrets.token_hex()
    with (
        redis.Redis(port=private_redis.port) as client,
        Meeting(private_redis.url, secret) as asking,
        real_process(private_redis.url, secret) as (process, name),
    ):
        before = client.keys("*")
        assert asking.ask().outcomes == {name: "done"}
        assert client.keys("*") == before
        process.kill()
        process.wait(PATIENCE)
        eventually(lambda: not client.pubsub_channels())
        assert client.keys("*") == before


@pytest.mark.slow
def test_a_process_that_is_stuck_is_reported(meeting: Meeting) -> None:
    secret = secrets.token_hex()
    with Meeting(meeting.url, secret) as asking:
        asking.play("a")
        with real_process(meeting.url, secret) as (process, name):
            eventually(lambda: sorted(who(asking)) == sorted(["a", name]))
            process.send_signal(signal.SIGSTOP)
            for seconds in (2.0, 10.0):  # the second on a busy machine
                asked = asking.ask(seconds=seconds, problem=ControlError)
                if asked.outcomes == {"a": "done"}:
                    break
            assert asked.outcomes == {"a": "done"}
            assert asked.problem is not None
            assert asked.problem.startswith("1 more process listens at the broker")
            # Not when it is known by another way, or nobody else can have been meant.
            assert asking.ask(seconds=4.0, leave_out=lambda: {name}).outcomes == {"a": "done"}
            only = Request(command="status", processes=("a",))
            assert asking.ask(only, seconds=4.0).outcomes == {"a": "done"}
            process.send_signal(signal.SIGCONT)
            eventually(lambda: sorted(who(asking)) == sorted(["a", name]))


# -- one connection ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_has_one_connection(server: PrivateRabbitMQ | PrivateRedis) -> None:
    with Meeting(server.url) as meeting:
        before = len(server.list_connections())
        meeting.play("a")
        for _ in range(3):
            meeting.ask()
        eventually(lambda: len(server.list_connections()) == before + 1)
        if isinstance(server, PrivateRabbitMQ):
            # Older kombus have no names for those to Redis.
            assert "kombu-pools-control" in str(server.list_connections())
    eventually(lambda: len(server.list_connections()) == before)


# -- RabbitMQ ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_broker_that_accepts_no_messages_is_reported(
    private_rabbitmq: PrivateRabbitMQ,
) -> None:
    with Meeting(private_rabbitmq.url) as meeting:
        meeting.play("a")
        with private_rabbitmq.memory_alarm():
            asked = meeting.ask(seconds=4.0, problem=ControlError)
        assert asked.known == []
        assert asked.problem is not None
        assert "in time: the broker accepts no messages: " in asked.problem
        eventually(lambda: who(meeting) == ["a"])


@pytest.mark.slow
def test_a_mailbox_knows_when_it_takes_messages_again(private_rabbitmq: PrivateRabbitMQ) -> None:
    with Meeting(private_rabbitmq.url) as meeting, meeting.mailbox() as (mailbox, signer):
        data, _ = signer.make("who", {})

        def blocked() -> bool:
            mailbox.receive(time.monotonic())
            return mailbox.blocked is not None

        with private_rabbitmq.memory_alarm():
            mailbox.send_to_all(data)
            eventually(blocked)
        eventually(lambda: not blocked())


@pytest.mark.slow
def test_the_rights_that_a_user_needs(
    private_rabbitmq: PrivateRabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    """The rights of docs/explanation/control-broadcast.md are enough; a user with fewer gets an error."""
    node = private_rabbitmq
    own = r"^kombu-pools\..*"
    both = r"^(kombu-pools\..*|amq\.direct)$"
    node.add_user("steered", "a-password", configure=own, write=both, read=both)
    try:
        with Meeting(node.url_of("steered", "a-password")) as meeting:
            meeting.play("a")
            assert meeting.ask().outcomes == {"a": "done"}
        node.permit("steered", "", "", "")
        project, pools = a_project(node.url_of("steered", "a-password"))
        with pytest.raises(ControlError, match="ACCESS_REFUSED"):
            RemoteClient(project).who(STATUS, time.monotonic() + PATIENCE)
        listener = listen(project)
        try:
            [line] = eventually(lambda: warnings(caplog))
        finally:
            listener.stop(PATIENCE)
        assert "ACCESS_REFUSED" in line
        assert "a-password" not in line
        assert pools.settings
    finally:
        node.delete_user("steered")


@pytest.mark.slow
def test_a_process_whose_roll_was_deleted_consumes_from_a_new_one(
    private_rabbitmq: PrivateRabbitMQ,
) -> None:
    with Meeting(private_rabbitmq.url) as meeting:
        meeting.play("a")
        roll = f"kombu-pools.{meeting.project.name}.roll"
        with meeting.pools.settings["default"].connection() as connection:
            connection.default_channel.queue_delete(roll)
        eventually(meeting.left)
        assert meeting.ask().outcomes == {"a": "done"}


@pytest.fixture
def roll_down(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let RabbitMQ answer for the roll as for a queue whose node is down, once this is called."""
    monkeypatch.setattr(rabbitmq_mailbox, "ENROL_RETRY", 0.1)
    monkeypatch.setattr(rabbitmq_mailbox, "_ROLL_OPTIONS", {"passive": True})
    monkeypatch.setattr(
        rabbitmq_mailbox,
        "_is_down",
        lambda error: isinstance(error, rabbitmq_mailbox.NotFound),
    )
    return monkeypatch.undo


@pytest.mark.broker
def test_without_the_roll_all_processes_are_waited_for(
    amqp_url: str, roll_down: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster, the node with the roll may be down."""
    with Meeting(amqp_url) as meeting:
        meeting.play("a")
        meeting.play("b")
        monkeypatch.setattr(remote_client, "DISCOVERY_TIMEOUT", 5.0)
        assert meeting.ask().outcomes == {"a": "done", "b": "done"}
        roll_down()
        # Entered at the next attempt.
        eventually(lambda: sorted(who(meeting)) == ["a", "b"] and meeting.left())
        assert meeting.ask().outcomes == {"a": "done", "b": "done"}


def test_over_tls(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    url = node.tls_url
    monkeypatch.setenv("SSL_CERT_FILE", str(Path(node.certificate)))
    with Meeting(url) as meeting:
        meeting.play("a")
        meeting.play("b")
        assert meeting.ask().outcomes == {"a": "done", "b": "done"}


# -- Redis ---------------------------------------------------------------------------------------------


def test_databases_and_prefixes_are_kept_apart(redis_url: str) -> None:
    """Pub/sub separates neither, but a test system with production's secret must not reach production."""
    secret = "a fourth secret that the test shares"
    url = redis_url.rpartition("/")[0]
    with (
        Meeting(f"{url}/0", secret) as zero,
        Meeting(f"{url}/1", secret) as one,
        Meeting(f"{url}/1", secret, TRANSPORT_OPTIONS={"global_keyprefix": "shop:"}) as shop,
    ):
        for number, meeting in enumerate((zero, one, shop)):
            meeting.play(f"p{number}")
        for number, meeting in enumerate((zero, one, shop)):
            assert meeting.ask().outcomes == {f"p{number}": "done"}
        assert any(name.startswith("shop:kombu-pools.1.") for name in shop.left())


def test_a_message_signed_for_one_scope_is_refused_in_another(redis_url: str) -> None:
    secret = "a fifth secret that the test shares"
    url = redis_url.rpartition("/")[0]
    with Meeting(f"{url}/0", secret) as staging, Meeting(f"{url}/1", secret) as production:
        played = production.play("a")
        with staging.mailbox() as (_, signer), production.mailbox() as (mailbox, _):
            content = {
                "names": ["a"],
                "request": Request(command="reset").as_dict(),
                "answer_to": mailbox.address,
            }
            mailbox.send_to_all(signer.make("do", content)[0])
        assert production.ask().outcomes == {"a": "done"}
        assert [request.command for request in played.done] == ["status"]


class Sentinel(Server):
    """A private sentinel of one Redis."""

    name = "redis-sentinel"
    start_timeout = LONG
    greeting = b"PING\r\n"
    answer = b"+PONG"

    def __init__(self, redis: PrivateRedis) -> None:
        super().__init__()
        self._redis = redis

    def command(self) -> list[str]:
        configuration = self.folder / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor steered 127.0.0.1 {self._redis.port} 1\n"
        )
        return [self._redis.command()[0], str(configuration), "--sentinel"]


@pytest.mark.slow
def test_commands_pass_a_sentinel(private_redis: PrivateRedis) -> None:
    with Sentinel(private_redis) as sentinel:
        url = f"sentinel://127.0.0.1:{sentinel.port}/0"
        with Meeting(url, TRANSPORT_OPTIONS={"master_name": "steered"}) as meeting:
            meeting.play("a")
            meeting.play("b")
            assert meeting.ask().outcomes == {"a": "done", "b": "done"}


# -- half of a message ---------------------------------------------------------------------------------


@pytest.mark.broker
@pytest.mark.slow
def test_half_a_frame_ends_the_connection(amqp_url: str) -> None:
    """The listener notices that the rest of the frame does not come."""
    with Proxy("127.0.0.1", port_of(amqp_url)) as proxy, Meeting(amqp_url) as meeting:
        meeting.play("a")
        proxy.play([(TO_CLIENT, Frame("basic.deliver", 5), "hold")], coming=1)
        behind, pools = a_project(through(proxy, amqp_url), heartbeat=2)
        behind.key, behind.name = meeting.project.key, meeting.project.name  # type: ignore[method-assign]
        listener = listen(behind)
        try:
            assert listener.joined.wait(PATIENCE)
            [link] = proxy.links
            asked = meeting.ask(seconds=10.0, problem=ControlError)
            assert asked.outcomes == {"a": "done"}
            # The rest does not come, and no heartbeat behind it.
            eventually(lambda: link.closed)
            eventually(lambda: len(who(meeting)) == 2, LONG)
        finally:
            listener.stop(PATIENCE)
        assert listener._ended.is_set()
        assert pools.settings


def test_a_redis_that_does_not_confirm_a_subscription(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Meeting(redis_url) as meeting, meeting.mailbox() as (mailbox, _):
        assert isinstance(mailbox, redis_mailbox.RedisMailbox)
        monkeypatch.setattr(redis_mailbox, "ANSWER_TIMEOUT", 0.0)
        monkeypatch.setattr(mailbox, "_within", lambda seconds: contextlib.nullcontext())
        monkeypatch.setattr(mailbox._subscription, "get_message", lambda timeout: None)
        with pytest.raises(TimeoutError, match="did not answer"):
            mailbox.join()
