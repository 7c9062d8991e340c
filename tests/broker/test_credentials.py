"""``CREDENTIALS`` are asked at each connect: a password that rotates costs nobody a connection that works."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kombu
import pytest
from amqp.exceptions import AccessRefused

from kombu_pools_ext import Pools, PoolSettings, connections
from kombu_pools_ext.broker.credentials import Credentials, CredentialsFailed, Login
from kombu_pools_ext.control.remote.connect import open_mailbox
from kombu_pools_ext.errors import BrokerUnreachable
from tests.brokers.redis import PrivateRedis

from .common import PATIENCE, eventually
from .rig import Node, in_child, port_of

SECRET = "s3cr3t/Pa55@1"
USER = "rotating"


class Vault:
    """Keeps the password of one user of one broker."""

    def __init__(
        self, name: str, settings: dict[str, Any], change: Callable[[str], object]
    ) -> None:
        self.name = name
        self._change = change
        self.password = SECRET
        self.asked = 0
        self.settings = {**settings, "CREDENTIALS": self.ask, "CONNECT_TIMEOUT": PATIENCE}
        change(SECRET)

    def ask(self) -> tuple[str, str]:
        self.asked += 1
        return USER, self.password

    def rotate(self, password: str) -> None:
        """At the broker, and here."""
        self._change(password)
        self.password = password


def _redis(server: PrivateRedis) -> Vault:
    def change(password: str) -> None:
        import redis

        with redis.Redis(port=server.port) as admin:
            rules = ("on", "resetpass", f">{password}", "~*", "&*", "+@all")
            admin.execute_command("ACL", "SETUSER", USER, *rules)

    return Vault("redis", {"HOST": "127.0.0.1", "PORT": server.port, "TRANSPORT": "redis"}, change)


def _rabbitmq(node: Node, scheme: str) -> Vault:
    port = port_of(node.url if scheme == "amqp" else node.tls_url)

    def change(password: str) -> None:
        node.change_password(USER, password)

    node.add_user(USER, SECRET, configure=".*", write=".*", read=".*")
    return Vault(scheme, {"HOST": "127.0.0.1", "PORT": port, "TRANSPORT": scheme}, change)


@pytest.fixture(
    params=[
        pytest.param("amqp", marks=pytest.mark.broker),
        pytest.param("amqps", marks=pytest.mark.broker),
        pytest.param("redis", marks=pytest.mark.redis),
    ]
)
def vault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Vault:
    if request.param == "redis":
        return _redis(request.getfixturevalue("private_redis"))
    node: Node = request.getfixturevalue("node")
    if request.param == "amqps":
        node.tls_url  # skips without an openssl
        monkeypatch.setenv("SSL_CERT_FILE", str(node.certificate))
    return _rabbitmq(node, request.param)


def lower(settings: dict[str, Any]) -> dict[str, Any]:
    """As keywords."""
    return {name.lower(): value for name, value in settings.items()}


def works(connection: Any) -> bool:
    """Whether the broker answers on it."""
    client = getattr(connection.default_channel, "client", None)
    if client is not None:
        return bool(client.ping())
    with connection.channel():
        return bool(connection.connected)


def lent(pool: Any) -> Any:
    """A connection of *pool*, once it has found that its broker is back."""

    def lend() -> Any:
        try:
            return pool.acquire(timeout=PATIENCE)
        except (BrokerUnreachable, AccessRefused):
            return None

    return eventually(lend)


# -- they rotate -------------------------------------------------------------------------------------------------------


def test_a_new_connection_has_the_new_password_and_a_working_one_stays(vault: Vault) -> None:
    pool = Pools(default={**vault.settings, "OUTAGE_PATIENCE": 0}).connections["default"]
    with pool.acquire(timeout=PATIENCE) as first:
        assert works(first)
        vault.rotate(f"{SECRET}-2")
        assert works(first)
        with pool.acquire(timeout=PATIENCE) as second:
            assert works(first)
            assert works(second)
            # A copy is no worse off.
            assert second.clone().password == f"{SECRET}-2"
        assert vault.asked == 2
    with pool.acquire(timeout=PATIENCE) as again:
        assert again.connected
    assert vault.asked == 2
    # What was sent is what was asked for: the old one is refused.
    vault.password = SECRET
    pool.force_close_all(close_pool=False)
    with pytest.raises(Exception, match=r"(?i)refused|invalid username-password") as caught:
        pool.acquire(timeout=PATIENCE)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    vault.password = f"{SECRET}-2"
    with lent(pool) as again:
        assert works(again)


def test_a_broker_that_hears_of_a_rotation_later_is_waited_for(vault: Vault) -> None:
    pool = Pools(default={**vault.settings, "OUTAGE_PATIENCE": PATIENCE}).connections["default"]
    vault.password = f"{SECRET}-2"
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.acquire, timeout=PATIENCE)
        eventually(lambda: vault.asked >= 2)
        assert not waiting.done()
        vault.rotate(f"{SECRET}-2")
        with waiting.result(PATIENCE) as connection:
            assert works(connection)


def test_the_next_broker_of_a_list_is_asked_with_them_too(vault: Vault) -> None:
    settings = {**vault.settings, "HOST": ["localhost.invalid", "127.0.0.1"]}
    with Pools(default=settings).connections["default"].acquire(timeout=PATIENCE) as connection:
        assert works(connection)
        assert connection.hostname == "127.0.0.1"


def test_a_password_alone_is_for_the_user_of_the_settings(vault: Vault) -> None:
    settings = {**vault.settings, "USER": USER, "CREDENTIALS": lambda: vault.password}
    with Pools(default=settings).connections["default"].acquire(timeout=PATIENCE) as connection:
        assert works(connection)


@pytest.mark.redis
def test_redis_asks_again_for_a_socket_that_it_opens_in_the_place_of_another(
    private_redis: PrivateRedis,
) -> None:
    import redis

    vault = _redis(private_redis)
    with Pools(default=vault.settings).producers["default"].acquire(timeout=PATIENCE) as producer:
        producer.publish("one", routing_key="credentials")
        vault.rotate(f"{SECRET}-2")
        with redis.Redis(port=private_redis.port) as admin:
            admin.execute_command("CLIENT", "KILL", "USER", USER)
        producer.publish("two", routing_key="credentials", retry=True)
        assert vault.asked == 2


def test_the_connection_that_commands_come_by_asks_too(vault: Vault) -> None:
    open_mailbox(PoolSettings.of(**lower(vault.settings)), "a project").close(PATIENCE)
    assert vault.asked == 1


# -- they fail ---------------------------------------------------------------------------------------------------------


def alias(credentials: Any, **settings: Any) -> Any:
    """An alias of a broker that nobody gets to: they are asked first."""
    return Pools(
        default={
            "HOST": "localhost.invalid",
            "CREDENTIALS": credentials,
            "OUTAGE_PATIENCE": 0,
            **settings,
        }
    )


def failing() -> str:
    raise LookupError(f"the lease of {SECRET} has expired")


def test_an_error_is_told_as_theirs_with_the_pool_and_without_what_it_says(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(BrokerUnreachable) as caught:
        alias(failing).publish({}, "q")
    told = str(caught.value)
    assert "pool 'amqp://localhost.invalid/'" in told
    assert f"CREDENTIALS ({__name__}.failing) raised LookupError" in told
    assert "open connections stay open" in told
    assert isinstance(caught.value.__cause__, LookupError)
    assert SECRET not in told + caplog.text


@pytest.mark.parametrize(
    "answer, error, message",
    [
        (5, TypeError, "returned a value of type int; expected a password, or a tuple"),
        (None, TypeError, "returned a value of type NoneType"),
        (SECRET.encode(), TypeError, "returned a value of type bytes"),
        ({"user": SECRET}, TypeError, "returned a value of type dict"),
        ((USER, 5), TypeError, "returned a tuple of str, int"),
        ((), TypeError, "returned a tuple of nothing"),
        ((USER, SECRET, SECRET), TypeError, "returned a tuple of str, str, str"),
        ((5, SECRET), TypeError, "returned a tuple of int, str"),
        ((USER, ""), ValueError, "returned a text that is empty"),
        ((USER, f"{SECRET}\0"), ValueError, "has a null character in it"),
        (SECRET, ValueError, "returned no user, and there is none in URL or USER"),
        ((SECRET,), ValueError, "returned no user"),
        ((None, SECRET), ValueError, "returned no user"),
        (("", SECRET), ValueError, "returned no user"),
    ],
    ids=str,
)
def test_an_answer_that_is_none_is_told_by_its_type(
    answer: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        alias(lambda: answer).publish({}, "q")
    told = f"{caught.value} {caught.value.__notes__}"
    assert message in told
    assert "pool 'amqp://localhost.invalid/'" in told
    assert SECRET not in told


def test_a_coroutine_is_no_answer() -> None:
    async def answer() -> str:
        return SECRET

    # A warning that it was never awaited would be an error here.
    with pytest.raises(TypeError, match="returned a value of type coroutine"):
        alias(lambda: answer()).publish({}, "q")


@pytest.mark.parametrize(
    "path, error, message",
    [
        (f"{__name__}.no_such", ImportError, "has no attribute 'no_such'"),
        (f"{__name__}.SECRET", TypeError, "is a value of type str; expected a function"),
    ],
)
def test_a_path_that_leads_to_nothing(path: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        alias(path).publish({}, "q")
    assert f"CREDENTIALS ({path})" in str(caught.value)
    assert message in str(caught.value)


def test_a_path_is_imported_when_it_is_first_asked(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "asked_by_path", vault.ask, raising=False)
    settings = {**vault.settings, "CREDENTIALS": f"{__name__}:asked_by_path"}
    with Pools(default=settings).connections["default"].acquire(timeout=PATIENCE) as connection:
        assert works(connection)
    assert vault.asked == 1


# -- they do not answer ------------------------------------------------------------------------------------------------


@pytest.fixture
def silence() -> Iterator[threading.Event]:
    ends = threading.Event()
    yield ends
    ends.set()


def test_one_that_does_not_answer_is_waited_for_in_one_thread_and_no_longer_than_for_a_connection(
    silence: threading.Event,
) -> None:
    started = []

    def ask() -> str:
        started.append(threading.current_thread())
        silence.wait()
        return SECRET

    credentials = Credentials(ask, names_user=True)
    for _ in range(3):
        with pytest.raises(CredentialsFailed, match=r"has not answered within 0\.01 s"):
            credentials.ask(0.01, needs_user=True)
    assert len(started) == 1
    silence.set()
    started[0].join(PATIENCE)
    assert credentials.ask(PATIENCE, needs_user=True) == Login(None, SECRET)
    assert len(started) == 2
    assert SECRET not in repr(Login(None, SECRET))


def test_the_caller_of_redis_hears_whose_silence_it_was(
    silence: threading.Event, redis_url: str
) -> None:
    pools = Pools(
        default={
            "URL": redis_url,
            "CREDENTIALS": lambda: (silence.wait(), "no")[1],
            "CONNECT_TIMEOUT": 0.5,
            "OUTAGE_PATIENCE": 0,
        }
    )
    with pytest.raises(BrokerUnreachable, match=r"CREDENTIALS \(.*\) has not answered within"):
        pools.connections["default"].acquire(timeout=PATIENCE)


def test_the_caller_hears_whose_silence_it_was(silence: threading.Event) -> None:
    pools = alias(lambda: (silence.wait(), "no")[1], CONNECT_TIMEOUT=0.5)
    with pytest.raises(BrokerUnreachable, match=r"CREDENTIALS \(.*\) has not answered within"):
        pools.publish({}, "q", acquire_timeout=PATIENCE)


def test_what_a_time_out_of_its_own_raises_is_no_silence() -> None:
    def ask() -> str:
        raise TimeoutError("of a client of its own")

    with pytest.raises(CredentialsFailed, match="raised TimeoutError"):
        Credentials(ask, names_user=True).ask(PATIENCE, needs_user=True)


@pytest.mark.forks
def test_a_child_asks_by_itself_what_its_parent_has_no_answer_to(silence: threading.Event) -> None:
    answers = iter([lambda: silence.wait(), lambda: None])
    credentials = Credentials(lambda: (next(answers)(), SECRET)[1], names_user=True)
    with pytest.raises(CredentialsFailed):
        credentials.ask(0.01, needs_user=True)
    assert in_child(lambda: credentials.ask(PATIENCE, needs_user=True).password) == SECRET


def test_they_are_asked_outside_of_the_pools_lock_and_cannot_lend_from_it(vault: Vault) -> None:
    found: list[Any] = []

    def ask() -> tuple[str, str]:
        pool = pools.connections["default"]
        found.append(pool.stats().lent)
        try:
            pool.acquire(timeout=PATIENCE)
        except Exception as error:
            found.append(type(error).__name__)
        return vault.ask()

    pools = Pools(default={**vault.settings, "CREDENTIALS": ask})
    with pools.connections["default"].acquire(timeout=PATIENCE) as connection:
        assert works(connection)
    assert found == [0, "PoolReentered"]


def test_when_they_answer_again_so_does_the_pool(vault: Vault) -> None:
    ill = True

    def ask() -> tuple[str, str]:
        if ill:
            failing()
        return vault.ask()

    pools = Pools(default={**vault.settings, "CREDENTIALS": ask, "OUTAGE_PATIENCE": 0})
    pool = pools.connections["default"]
    with pytest.raises(BrokerUnreachable, match="raised LookupError"):
        pool.acquire(timeout=PATIENCE)
    ill = False
    with lent(pool) as connection:
        assert works(connection)


def test_the_memory_transport_does_not_call_credentials() -> None:
    with (
        Pools(default={"TRANSPORT": "memory", "CREDENTIALS": failing})
        .connections["default"]
        .acquire(timeout=PATIENCE) as connection
    ):
        assert connection.connected


# -- which of them are one pool ----------------------------------------------------------------------------------------


def test_aliases_with_other_credentials_have_pools_of_their_own() -> None:
    one = {"HOST": "h", "CREDENTIALS": failing}
    pools = Pools(a=one, b={**one}, c={**one, "CREDENTIALS": lambda: SECRET})
    assert pools.connections["a"] is pools.connections["b"] is not pools.connections["c"]


@pytest.mark.redis
def test_a_provider_of_redis_made_for_each_request_is_one_pool(private_redis: PrivateRedis) -> None:
    import redis
    from redis.credentials import CredentialProvider

    if not hasattr(kombu.Connection("memory://"), "credential_provider"):
        pytest.skip("this kombu has no credential_provider")
    vault = _redis(private_redis)

    class Provider(CredentialProvider):
        def __init__(self, region: str) -> None:
            self.region = region
            self.token: str | None = None

        def get_credentials(self) -> tuple[str, str]:
            # As those do that keep a token until it expires.
            self.token = vault.password
            return USER, self.token

    known = len(connections)
    for number in range(20):
        if number == 10:
            vault.rotate(f"{SECRET}-2")
            with redis.Redis(port=private_redis.port) as admin:
                admin.execute_command("CLIENT", "KILL", "USER", USER)
        provider = Provider("north")
        broker = kombu.Connection(private_redis.url, credential_provider=provider)
        with connections[broker].acquire(timeout=PATIENCE) as connection:
            assert works(connection)
    assert len(connections) == known + 1
    assert len([row for row in private_redis.list_connections() if row["user"] == USER]) == 1
    other = kombu.Connection(private_redis.url, credential_provider=Provider("south"))
    assert connections[other] is not connections[broker]


def test_providers_that_cannot_be_compared_make_no_pools_without_end() -> None:
    if not hasattr(kombu.Connection("memory://"), "credential_provider"):
        pytest.skip("this kombu has no credential_provider")

    class Provider:
        def __init__(self) -> None:
            self.client = object()

    with pytest.raises(ValueError, match="make one object and keep it, or give the class __eq__"):
        for _ in range(50):
            connections[kombu.Connection("memory://", credential_provider=Provider())]
    assert len(connections) < 50


def test_a_password_of_kombus_that_is_called_is_one_pool_wherever_it_is_made() -> None:
    def broker(user: str) -> kombu.Connection:
        return kombu.Connection("memory://", password=lambda: user)

    assert connections[broker("a")] is connections[broker("a")] is not connections[broker("b")]
