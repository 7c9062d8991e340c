"""Connecting: bounded as a whole whoever answers, each broker of a list in turn, and errors that say what is wrong."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import amqp
import kombu
import pytest
from kombu.exceptions import OperationalError

from kombu_pools_ext.broker.amqp.handshake import Handshake, WrongProtocol
from kombu_pools_ext.broker.broker_list import switch_to
from kombu_pools_ext.broker.connecting import FIRST_AGAIN, Connector
from kombu_pools_ext.broker.connection import OpenConnection
from kombu_pools_ext.broker.driver import ConnectionDriver
from kombu_pools_ext.broker.failed_openings import NotConnected, may_pass
from kombu_pools_ext.errors import BrokerUnreachable, ConnectTimeout
from kombu_pools_ext.pools import connections
from tests.broker.common import PATIENCE, eventually, within
from tests.broker.rig import REDISS, port_of, sockets_to, through
from tests.proxy import Proxy

SECRET = "s3cr3t-Pa55"
#: Seconds to connect in; whoever answers at all does so at once.
SOON = 0.2
#: What RabbitMQ says first, without its properties.
START = (
    b"\x01\x00\x00\x00\x00\x00\x1c\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x00"
    b"\x00\x00\x00\x05PLAIN\x00\x00\x00\x05en_US\xce"
)


class Speaker:
    """A server that says one thing to whoever comes, and keeps the connection open or ends it."""

    def __init__(self, words: bytes, *, every: float = 0.0, ends: bool = False) -> None:
        self._words, self._every, self._ends = words, every, ends
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="speaker", daemon=True)

    def __enter__(self) -> Speaker:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        with contextlib.suppress(OSError):
            # Ends the accept, which a close alone would not. Without a look-up: a test may have stubbed it.
            with socket.socket() as last:
                last.connect(("127.0.0.1", self.port))
        self._thread.join(PATIENCE)
        self._listener.close()

    def _serve(self) -> None:
        heard = []
        while not self._done.is_set():
            peer, _ = self._listener.accept()
            heard.append(peer)
            with contextlib.suppress(OSError):
                if not self._every:
                    peer.sendall(self._words)
                else:
                    # A byte at a time, for ever; a send to who has gone ends it.
                    while not self._done.wait(self._every):
                        peer.sendall(self._words[:1])
                        self._words = self._words[1:] or b"\0"
                if self._ends:
                    peer.shutdown(socket.SHUT_WR)
        for peer in heard:
            peer.close()


def opening(url: Any, **options: Any) -> Callable[[], OpenConnection]:
    options.setdefault("connect_timeout", SOON)
    return ConnectionDriver(lambda: kombu.Connection(url, **options)).open


def failure(url: Any, **options: Any) -> Exception:
    """What an opening ends with, which it must do in time, and without a socket left behind."""
    with pytest.raises(Exception) as caught:
        within(PATIENCE, opening(url, **options))
    if isinstance(url, str) and port_of(url):
        assert sockets_to(port_of(url)) == {}
    return caught.value


# -- who answers, and how ----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["amqp", "amqps", "redis", REDISS])
def test_a_peer_that_accepts_and_says_nothing(mute: Proxy, scheme: str) -> None:
    if scheme.startswith("redis"):
        pytest.importorskip("redis")
    error = failure(f"{scheme}://u:{SECRET}@{mute.address}/0")
    assert isinstance(error, NotConnected)
    assert f"no connection to {mute.address} within {SOON:g} s" in str(error)
    assert SECRET not in str(error)
    assert may_pass(error)


@pytest.mark.parametrize(
    "words, scheme, phase",
    [
        (START, "amqp", "the AMQP handshake did not end"),
        # The header of a TLS record of 64 bytes, and its beginning.
        (b"\x16\x03\x03\x00\x40\x02\x00\x00\x3c", "amqps", "the TLS handshake did not end"),
        (b"$1000\r\n", "redis", "said nothing"),
    ],
)
@pytest.mark.threads
def test_a_peer_that_drips(words: bytes, scheme: str, phase: str) -> None:
    if scheme == "redis":
        pytest.importorskip("redis")
    with Speaker(words, every=0.05) as peer:
        # Long enough for the first of the bytes to come.
        error = failure(f"{scheme}://127.0.0.1:{peer.port}/0", connect_timeout=2.0)
    assert isinstance(error, NotConnected)
    assert phase in str(error)
    assert may_pass(error)


@pytest.mark.parametrize(
    "words, said",
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no AMQP broker, but an HTTP server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "an SSH server"),
        (b"-ERR unknown command\r\n", "a Redis server"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "write amqps://"),
        (b"AMQP\x00\x01\x00\x00", "another version of AMQP (0-1-0-0)"),
        (b"\xff\xfe\xfd\xfc\xfb\xfa\xf9", "no AMQP broker: it begins with"),
        # Frames of no kind, of no method, of a gigabyte, of nothing that makes sense, and without an end.
        (b"\x01\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\xce", "sends what is no AMQP"),
        (b"\x01\x00\x00\x00\x00\x00\x04\xff\xff\xff\xff\xce", "sends what is no AMQP"),
        (b"\x01\x00\x07" + START[3:], "sends what is no AMQP"),
        (START[:-1] + b"\x00", "sends what is no AMQP"),
        (START[:11] + b"\x00\x09\x7f\xff\xff\xff" + START[17:], "sends what is no AMQP"),
        (b"\x01\x00\x00\x7f\xff\xff\xff" + b"\0" * 100, "a frame of more than 131072 bytes"),
    ],
)
def test_who_speaks_no_amqp(words: bytes, said: str) -> None:
    with Speaker(words) as peer:
        error = failure(f"amqp://127.0.0.1:{peer.port}//", connect_timeout=PATIENCE)
    assert isinstance(error, NotConnected)
    assert isinstance(error.__cause__, WrongProtocol)
    assert f"127.0.0.1:{peer.port}" in str(error)
    assert said in str(error)
    assert not may_pass(error)


@pytest.mark.parametrize("words", [b"", b"AM", START[:20], START])
def test_who_hangs_up(words: bytes) -> None:
    with Speaker(words, ends=True) as peer:
        error = failure(f"amqp://127.0.0.1:{peer.port}//", connect_timeout=PATIENCE)
    assert isinstance(error, NotConnected)
    assert "closed the connection in the handshake" in str(error)
    assert may_pass(error)


def test_a_broker_that_asks_for_an_unknown_login() -> None:
    with Speaker(START.replace(b"PLAIN", b"GUESS")) as peer:
        error = failure(f"amqp://127.0.0.1:{peer.port}//", connect_timeout=PATIENCE)
    assert isinstance(error, amqp.exceptions.ConnectionError)
    assert not may_pass(error)


@pytest.mark.broker
def test_refusals_leave_no_socket(proxied: Callable[[str], Proxy], amqp_url: str) -> None:
    proxy = proxied(amqp_url)
    parts = urlsplit(amqp_url)
    login = parts.netloc.rpartition("@")[0]
    for url, kind in [
        (f"amqp://guest:{SECRET}@{proxy.address}//", amqp.exceptions.AccessRefused),
        (f"amqp://{login}@{proxy.address}/missing", amqp.exceptions.NotAllowed),
    ]:
        error = failure(url, connect_timeout=PATIENCE)
        assert isinstance(error, kind)
        assert not may_pass(error)


@pytest.mark.broker
def test_nothing_of_the_handshake_stays(amqp_url: str) -> None:
    plain = kombu.Connection(amqp_url)
    plain.connect()
    ours = opening(amqp_url, connect_timeout=PATIENCE)()
    try:
        transport = ours._connection._transport
        assert transport.opening is None
        # It reads and writes by methods of its own class.
        assert not {"_quick_recv", "_write"} & {*transport.__dict__}
        assert not any(isinstance(one, Handshake) for one in vars(ours._connection).values())
        assert transport.sock.gettimeout() == plain._connection._transport.sock.gettimeout()
        assert transport.connect_timeout == PATIENCE
        assert "Connection" not in ours.transport.__dict__
    finally:
        ours._close()
        plain.close()


def test_an_address_that_swallows_packets_leaves_time_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Speaker(b"SSH-2.0") as peer, full_listener() as full:
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))
            for port in (full, peer.port)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with pytest.raises(NotConnected, match="an SSH server"):
            # Half of it is left for the second one.
            within(PATIENCE, opening("amqp://somewhere//", connect_timeout=4))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found[:1])
        with pytest.raises(NotConnected, match=r"within 0\.2 s: it did not accept"):
            within(PATIENCE, opening("amqp://somewhere//", connect_timeout=0.2))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
        with pytest.raises(NotConnected, match="'somewhere' has no address"):
            within(PATIENCE, opening("amqp://somewhere//"))


@contextlib.contextmanager
def full_listener() -> Iterator[int]:
    """A port whose packets get lost, as a firewall does it: its queue is full, and nobody accepts."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
            yield address[1]


# -- several addresses ---------------------------------------------------------------------------------

#: What a broker that stops says in the handshake.
FORCED = b"\x01\x00\x00\x00\x00\x00\x13\x00\x0a\x00\x32\x01\x40\x08shutdown\x00\x00\x00\x00\xce"
#: The beginning of TLS's first answer.
SERVER_HELLO = b"\x16\x03\x03\x00\x40\x02\x00\x00\x3c"


def lead_to(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    """Let each name have these ports of this machine for its addresses."""
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))
        for port in ports
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


@pytest.mark.broker
@pytest.mark.parametrize("words", [b"", START[:20], START, START + FORCED])
@pytest.mark.parametrize("ends", [True, False], ids=["and hangs up", "and is silent"])
@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_after_an_address_that_accepts_the_next_is_tried(
    node: Any, monkeypatch: pytest.MonkeyPatch, words: bytes, ends: bool, scheme: str
) -> None:
    url, seconds = node.url, 2.0 if not ends else PATIENCE
    if scheme == "amqps":
        monkeypatch.setenv("SSL_CERT_FILE", str(node.certificate))
        url, words = node.tls_url, SERVER_HELLO[: len(words)]
    with Speaker(words, ends=ends) as first:
        lead_to(monkeypatch, first.port, port_of(url))
        connection = within(PATIENCE, opening(url, connect_timeout=seconds))
        try:
            assert connection._connection.channel().is_open
        finally:
            connection._close()
        assert sockets_to(first.port) == {}


def test_the_error_names_each_address_that_was_tried(
    monkeypatch: pytest.MonkeyPatch, mute: Proxy, nowhere: int
) -> None:
    with Speaker(b"", ends=True) as rude:
        lead_to(monkeypatch, nowhere, rude.port, mute.port)
        error = failure("amqp://somewhere//", connect_timeout=1)
    assert isinstance(error, NotConnected)
    assert may_pass(error)
    for said in (
        "of the 3 addresses of 'somewhere' were tried",
        f"127.0.0.1:{nowhere}: [Errno",
        f"127.0.0.1:{rude.port}: closed the connection in the handshake",
        f"127.0.0.1:{mute.port}: within ",
        "it accepted, and said nothing",
    ):
        assert said in str(error)


@pytest.mark.broker
@pytest.mark.parametrize(
    "make_url",
    [
        lambda node: f"amqp://guest:{SECRET}@somewhere//",
        lambda node: "amqp://guest:guest@somewhere/missing",
        # It does not know the certificate.
        lambda node: "amqps://guest:guest@somewhere//",
    ],
    ids=["wrong password", "missing virtual host", "certificate"],
)
def test_a_broker_that_refuses_us_is_not_asked_at_its_next_address(
    node: Any, monkeypatch: pytest.MonkeyPatch, mute: Proxy, make_url: Any
) -> None:
    url = make_url(node)
    port = node.tls_port if url.startswith("amqps") else node.port
    lead_to(monkeypatch, port, mute.port)
    error = failure(url, connect_timeout=PATIENCE)
    assert not may_pass(error)
    assert mute.accepted == 0
    assert f"were tried: 127.0.0.1:{port}: " in "".join(
        [str(error), *getattr(error, "__notes__", ())]
    )


@pytest.mark.broker
@pytest.mark.parametrize(
    "words", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x01" * 200]
)
@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_after_an_address_where_no_broker_answers_the_next_is_tried(
    node: Any, monkeypatch: pytest.MonkeyPatch, words: bytes, scheme: str
) -> None:
    url = node.url
    if scheme == "amqps":
        monkeypatch.setenv("SSL_CERT_FILE", str(node.certificate))
        url = node.tls_url
    with Speaker(words) as first:
        lead_to(monkeypatch, first.port, port_of(url))
        connection = within(PATIENCE, opening(url, connect_timeout=5.0))
        try:
            assert connection._connection.channel().is_open
        finally:
            connection._close()
        assert sockets_to(first.port) == {}


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_where_no_broker_answers_at_any_address_it_is_for_good(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with Speaker(b"SSH-2.0-OpenSSH_9.2\r\n") as first, Speaker(b"SSH-2.0-OpenSSH_9.2\r\n") as other:
        lead_to(monkeypatch, first.port, other.port)
        error = failure(f"{scheme}://somewhere//", connect_timeout=PATIENCE)
    assert not may_pass(error)
    notes = "\n".join(getattr(error, "__notes__", [])) + str(error)
    assert "of the 2 addresses of 'somewhere' were tried" in notes


# -- the name ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
@pytest.mark.threads
def test_a_look_up_that_hangs(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    if scheme == "redis":
        pytest.importorskip("redis")
    answered, asked = threading.Event(), threading.Event()
    real = socket.getaddrinfo

    def hang(*arguments: Any, **options: Any) -> Any:
        asked.set()
        assert answered.wait(PATIENCE)
        return real("127.0.0.1", *arguments[1:], **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with Speaker(b"SSH-2.0") as peer:
        pool = connections[
            kombu.Connection(f"{scheme}://somewhere:{peer.port}/0", connect_timeout=SOON)
        ]
        try:
            began = time.monotonic()
            with pytest.raises(ConnectTimeout):
                within(PATIENCE, lambda: pool.acquire(timeout=0.1))
            assert asked.wait(PATIENCE)
            # Nobody can end a look-up. The caller has long gone on.
            assert time.monotonic() - began < PATIENCE
            eventually(lambda: time.monotonic() - began > SOON)
        finally:
            answered.set()
        eventually(lambda: pool.stats().open_failures and not sockets_to(peer.port))


def test_time_that_a_look_up_has_taken_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.1)
        return real("127.0.0.1", *arguments[1:], **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    error = failure("amqp://somewhere:1//", connect_timeout=0.05)
    assert "within 0.05 s: its name was still being looked up" in str(error)
    assert may_pass(error)


@pytest.mark.threads  # eventlet has a resolver of its own
def test_a_name_that_is_not_known() -> None:
    error = failure("amqp://nowhere.invalid//", connect_timeout=PATIENCE)
    assert isinstance(error.__cause__, socket.gaierror)
    # A name server that is down, or does not know the container yet, looks the same.
    assert may_pass(error)


def test_what_cannot_be_a_name() -> None:
    error = failure(f"amqp://{'a' * 64}.example//", connect_timeout=PATIENCE)
    assert isinstance(error, NotConnected)
    assert "cannot be a host's name" in str(error)


# -- several brokers --------------------------------------------------------------------------------


class Cluster:
    """Three ways to one broker, each of which a test can close, and a clock."""

    def __init__(self, proxies: list[Proxy], url: str) -> None:
        self.proxies = proxies
        self.now = 1000.0
        urls = [through(proxy, url) for proxy in proxies]
        self.connector = Connector(
            ConnectionDriver(lambda: kombu.Connection(urls, connect_timeout=PATIENCE)).new,
            clock=lambda: self.now,
        )

    def open(self) -> list[int]:
        """The numbers of the proxies that an opening asked."""
        before = [proxy.accepted for proxy in self.proxies]
        connection = within(PATIENCE, self.connector.open)
        connection._close()
        for proxy in self.proxies:
            # It counts after it has served.
            proxy.run(lambda: None)
        return [
            number for number, proxy in enumerate(self.proxies) if proxy.accepted > before[number]
        ]


@pytest.fixture
def cluster(proxied: Callable[[str], Proxy], amqp_url: str) -> Cluster:
    return Cluster([proxied(amqp_url) for _ in range(3)], amqp_url)


@pytest.mark.broker
def test_the_good_one_is_remembered_and_the_first_tried_again_later(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether it is asked again is the matter, and not how fast it is.
    monkeypatch.setattr("kombu_pools_ext.broker.connecting.TRY_FIRST", PATIENCE)
    first, second, third = cluster.proxies
    assert cluster.open() == [0]
    first.refuse()
    assert cluster.open() == [0, 1]
    assert cluster.open() == [1]
    cluster.now += FIRST_AGAIN - 1
    assert cluster.open() == [1]
    cluster.now += 1
    # One opening tries it, and goes on to the good one.
    assert cluster.open() == [0, 1]
    assert cluster.open() == [1]
    second.refuse()
    assert cluster.open() == [1, 2]
    assert cluster.open() == [2]
    third.refuse()
    second.heal()
    # Round, by way of the first.
    assert cluster.open() == [0, 1, 2]
    cluster.now += FIRST_AGAIN
    first.heal()
    assert cluster.open() == [0]
    assert cluster.open() == [0]


@pytest.mark.broker
def test_the_first_gets_a_second_and_not_the_whole_time_when_it_is_tried_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kombu_pools_ext.broker.connecting.TRY_FIRST", 0.1)
    first = cluster.proxies[0]
    first.refuse()
    assert cluster.open() == [0, 1]
    first.heal()
    first.silence()
    cluster.now += FIRST_AGAIN
    # With its PATIENCE of a time-out it would not come to the second one.
    assert cluster.open() == [0, 1]


@pytest.mark.broker
def test_a_broker_that_refuses_us_is_not_the_end_of_the_list(amqp_url: str) -> None:
    parts = urlsplit(amqp_url)
    url = f"amqp://{parts.netloc}/missing"
    opened = opening([url, amqp_url], connect_timeout=PATIENCE)()
    opened._close()
    with pytest.raises(amqp.exceptions.NotAllowed) as caught:
        opening([url, url], connect_timeout=PATIENCE)()
    assert "missing" in "".join(caught.value.__notes__)
    error = failure([url, "amqp://127.0.0.1:1//"], connect_timeout=PATIENCE)
    assert isinstance(error, NotConnected)
    # It might be the other one that comes back.
    assert may_pass(error)


def test_the_error_names_every_broker_and_why_without_passwords() -> None:
    with Speaker(b"SSH-2.0") as peer:
        error = failure(
            [f"amqp://u:{SECRET}@127.0.0.1:1//", f"amqp://u:{SECRET}@127.0.0.1:{peer.port}/v"]
        )
    assert isinstance(error, OperationalError)
    assert str(error).startswith("none of 2 brokers can be connected to: amqp://u:**@127.0.0.1:1//")
    # In eventlet's words or the system's.
    assert "[Errno 111]" in str(error)
    assert f"amqp://u:**@127.0.0.1:{peer.port}/v: " in str(error)
    assert "an SSH server" in str(error)
    assert SECRET not in str(error)
    assert isinstance(error.__cause__, WrongProtocol)


def test_the_pools_error_says_all_of_it() -> None:
    pool = connections[[f"amqp://u:{SECRET}@127.0.0.1:1//", "redis://127.0.0.1:1/0"][:1] * 2]
    with pytest.raises(BrokerUnreachable, match="none of 2 brokers") as caught:
        pool.acquire()
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_another_strategy_keeps_its_own_order() -> None:
    asked: list[str] = []

    def backwards(urls: list[str]) -> Iterator[str]:
        while True:
            for url in reversed(urls):
                asked.append(url)
                yield url

    urls = [f"amqp://127.0.0.1:{port}//" for port in (1, 2, 3)]
    error = failure(urls, failover_strategy=backwards)
    assert str(error).index(":1//") < str(error).index(":2//")
    # kombu skips one, for the connection is set to the first already.
    assert asked[-3:] == [urls[2], urls[1], urls[0]]


def test_a_switch_keeps_nothing_of_the_broker_before() -> None:
    connection = kombu.Connection(["amqp://a:5673/shop", "amqp://b", "c"])
    switch_to(connection, connection.alt[1])
    assert (connection.hostname, connection.port, connection.virtual_host) == ("b", 5672, "/")
    switch_to(connection, connection.alt[0])
    assert (connection.hostname, connection.port, connection.virtual_host) == ("a", 5673, "shop")
    # What is no URL is kombu's to read.
    switch_to(connection, connection.alt[2])
    assert connection.hostname == "c"


# -- what may pass ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, passes",
    [
        (ConnectionRefusedError(), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError("no route to host"), True),
        (socket.gaierror(socket.EAI_AGAIN, "later"), True),
        (ssl.SSLEOFError(), True),
        (amqp.exceptions.ConnectionForced(), True),
        (amqp.exceptions.InternalError(), True),
        (amqp.exceptions.RecoverableConnectionError(), True),
        (OperationalError("somebody's"), True),
        (ssl.SSLCertVerificationError(), False),
        (ssl.SSLError(1, "[SSL] PEM lib"), False),
        (FileNotFoundError(), False),
        (amqp.exceptions.AccessRefused(), False),
        (amqp.exceptions.NotAllowed(), False),
        (amqp.exceptions.ConnectionError("no login in common"), False),
        (WrongProtocol(), False),
        (ValueError("a bug"), False),
        (ImportError(), False),
    ],
    ids=repr,
)
def test_what_may_pass(error: Exception, passes: bool) -> None:
    assert may_pass(error) is passes
    wrapped = OperationalError(str(error))
    wrapped.__cause__ = error
    assert may_pass(wrapped) is passes


def test_what_may_pass_of_redis() -> None:
    errors = pytest.importorskip("redis.exceptions")
    assert may_pass(errors.ConnectionError())
    assert may_pass(errors.BusyLoadingError())
    assert may_pass(errors.TimeoutError())
    assert not may_pass(errors.AuthenticationError())
    assert not may_pass(errors.ResponseError())


def test_each_connection_of_a_pool_has_its_options_for_itself() -> None:
    options = {"confirm_publish": True}
    origin = kombu.Connection(
        "amqp://a//", transport_options=options, ssl={"ca_certs": "ca"}, alternates=["amqp://b//"]
    )
    driver = ConnectionDriver(lambda: origin)
    first, second = driver.new(), driver.new()
    first.transport_options["confirm_publish"] = False
    first.ssl["server_hostname"] = "a"
    first.alt.append("amqp://c//")
    for other in (second, driver.new(), origin):
        assert other.transport_options == {"confirm_publish": True}
        assert other.ssl == {"ca_certs": "ca"}
        assert "amqp://c//" not in other.alt


def test_options_that_make_no_sense_are_no_matter_of_reaching() -> None:
    error = failure(
        ["amqp://127.0.0.1:1//", "amqp://127.0.0.1:2//"], transport_options={"login_method": "X"}
    )
    assert isinstance(error, ValueError)
    assert not may_pass(error)
