"""TLS: the broker's certificate, its name and ours; on by default, refused at once, and with a remedy."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kombu
import pytest
from kombu.transport import pyamqp

from kombu_pools_ext.aliases import Pools
from kombu_pools_ext.broker import tls
from kombu_pools_ext.broker.driver import ConnectionDriver
from kombu_pools_ext.broker.failed_openings import NotConnected, may_pass
from kombu_pools_ext.errors import BrokerUnreachable
from kombu_pools_ext.pools import connections
from tests.broker.certificates import Certificates
from tests.broker.common import PATIENCE, within
from tests.broker.rig import REDISS, Node, port_of, sockets_to
from tests.brokers import PrivateRabbitMQ, PrivateRedis, free_port
from tests.conftest import _private

SECRET = "s3cr3t-Pa55"


class Greeter:
    """Shakes hands over TLS with one certificate, and hangs up: as far as a certificate matters, a broker."""

    def __init__(self, certificates: Certificates, name: str) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates.path(name), certificates.key(name))
        self._context.sni_callback = self._note
        #: The names that clients asked for.
        self.asked: list[str | None] = []
        #: How often a handshake came to its end.
        self.greeted = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="greeter", daemon=True)

    def _note(self, sock: Any, name: str | None, context: Any) -> None:
        self.asked.append(name)

    def __enter__(self) -> Greeter:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended = True
        with socket.socket() as last:
            last.connect(("127.0.0.1", self.port))
        self._thread.join(PATIENCE)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            peer, _ = self._listener.accept()
            if self._ended:
                peer.close()
                return
            peer.settimeout(PATIENCE)
            # With its handshake apart: eventlet would forget a socket whose handshake failed.
            wrapped = self._context.wrap_socket(
                peer, server_side=True, do_handshake_on_connect=False
            )
            with wrapped, contextlib.suppress(OSError):
                wrapped.do_handshake()
                self.greeted += 1
                # Whoever closes with something left to read resets the connection.
                wrapped.recv(1024)


@pytest.fixture
def greeter(certificates: Certificates) -> Iterator[Callable[[str], Greeter]]:
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(Greeter(certificates, name))


def alias(url: Any, **settings: Any) -> Any:
    """The pool of an alias."""
    return Pools({"default": {"URL": url, **settings}}).connections["default"]


def refusal(pool: Any) -> BrokerUnreachable:
    with pytest.raises(BrokerUnreachable) as caught:
        # Without a time-out: what might pass is else waited for.
        within(PATIENCE, pool.acquire)
    assert SECRET not in str(caught.value)
    return caught.value


#: The certificate, and what the remedy says.
WRONG = [
    ("elsewhere", "the certificate is not made out to"),
    ("expired", "has expired"),
    ("stranger", "nobody known has signed"),
]


@pytest.mark.parametrize("name, remedy", WRONG)
@pytest.mark.parametrize("scheme", ["amqps", REDISS])
@pytest.mark.parametrize("kind", ["alias", "connection"])
def test_a_wrong_certificate_is_refused_at_once_and_for_good(
    certificates: Certificates,
    greeter: Callable[[str], Greeter],
    kind: str,
    scheme: str,
    name: str,
    remedy: str,
) -> None:
    prefix = ""
    if scheme == "rediss":
        pytest.importorskip("redis")
        prefix = "ssl_"
    server = greeter(name)
    url = f"{scheme}://u:{SECRET}@localhost:{server.port}/0"
    options = {f"{prefix}ca_certs": certificates.path("ca")}
    if kind == "alias":
        pool = alias(url, SSL=options, CONNECT_TIMEOUT=PATIENCE)
    else:
        pool = connections[kombu.Connection(url, ssl=options, connect_timeout=PATIENCE)]
    with pytest.raises(NotConnected) as caught:
        within(PATIENCE, pool._driver.open)
    error = caught.value
    assert remedy in str(error)
    assert "'localhost'" in str(error)
    assert SECRET not in str(error)
    assert not may_pass(error)
    assert isinstance(tls.tls_error(error), ssl.SSLCertVerificationError)
    assert sockets_to(server.port) == {}
    assert server.greeted == 0


def test_the_pools_error_names_pool_host_and_remedy(
    certificates: Certificates, greeter: Callable[[str], Greeter]
) -> None:
    server = greeter("elsewhere")
    url = f"amqps://u:{SECRET}@localhost:{server.port}//"
    error = refusal(alias(url, SSL={"ca_certs": certificates.path("ca")}, CONNECT_TIMEOUT=PATIENCE))
    assert f"pool 'amqps://u:**@localhost:{server.port}//'" in str(error)
    assert (
        "not made out to 'localhost': use a name that is in it, or set SSL's 'server_hostname'"
        in str(error)
    )


@pytest.mark.parametrize(
    "options, name, accepted",
    [
        ({}, "server", True),
        ({"server_hostname": None}, "server", True),
        ({"server_hostname": "localhost"}, "server", True),
        ({"server_hostname": "elsewhere.example"}, "elsewhere", True),
        ({"server_hostname": "elsewhere.example"}, "server", False),
        ({"check_hostname": False}, "elsewhere", True),
        ({"check_hostname": False}, "stranger", False),
        ({"check_hostname": False, "server_hostname": "x.example"}, "elsewhere", True),
        ({"check_hostname": False, "cert_reqs": ssl.CERT_NONE}, "stranger", True),
        (
            {
                "check_hostname": False,
                "ciphers": "DEFAULT",
                "tls_minimum_version": ssl.TLSVersion.TLSv1_2,
                "tls_maximum_version": ssl.TLSVersion.TLSv1_2,
                "ssl_version": ssl.PROTOCOL_TLS_CLIENT,
            },
            "elsewhere",
            True,
        ),
        ({"cert_reqs": ssl.CERT_REQUIRED}, "elsewhere", False),
        ({"cert_reqs": ssl.CERT_NONE}, "stranger", True),
        ({"cert_reqs": ssl.CERT_NONE, "server_hostname": "x"}, "stranger", True),
        ({"context": {"purpose": ssl.Purpose.SERVER_AUTH}}, "server", True),
        ({"context": {"purpose": ssl.Purpose.SERVER_AUTH}}, "elsewhere", False),
        ({"context": {"check_hostname": False}}, "elsewhere", True),
    ],
    ids=repr,
)
def test_whose_certificate_is_accepted_over_amqp(
    certificates: Certificates,
    greeter: Callable[[str], Greeter],
    options: dict[str, Any],
    name: str,
    accepted: bool,
) -> None:
    server = greeter(name)
    if "context" in options:
        options = {"context": {**options["context"], "cafile": certificates.path("ca")}}
    else:
        options = {**options, "ca_certs": certificates.path("ca")}
    pool = alias(f"amqp://localhost:{server.port}//", SSL=options, CONNECT_TIMEOUT=PATIENCE)
    with pytest.raises(NotConnected) as caught:
        within(PATIENCE, pool._driver.open)
    # It has shaken hands, and then hung up.
    assert ("closed the connection" in str(caught.value)) is accepted
    assert (server.greeted == 1) is accepted
    # A server of several names is told which one is meant, whether the answer is compared or not.
    assert server.asked == [options.get("server_hostname") or "localhost"]


def test_without_options_the_systems_authorities_count_and_the_name_too(
    certificates: Certificates, greeter: Callable[[str], Greeter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certificates.path("ca"))
    for name, greeted in (("elsewhere", 0), ("server", 1)):
        for tls_options in ({}, {"SSL": True}):
            server = greeter(name)
            pool = alias(f"amqps://localhost:{server.port}//", **tls_options)
            with pytest.raises(NotConnected):
                within(PATIENCE, pool._driver.open)
            assert server.greeted == greeted
            assert server.asked == ["localhost"]
        server = greeter(name)
        with pytest.raises(NotConnected):
            within(PATIENCE, connections[f"amqps://localhost:{server.port}//"]._driver.open)
        assert server.greeted == greeted


def test_each_of_a_list_is_asked_by_its_own_name(
    certificates: Certificates, greeter: Callable[[str], Greeter]
) -> None:
    first, second = greeter("server"), greeter("server")
    urls = [f"amqps://localhost:{first.port}//", f"amqps://127.0.0.1:{second.port}//"]
    options = {"ca_certs": certificates.path("ca"), "server_hostname": None}
    pool = alias(urls, SSL=options, CONNECT_TIMEOUT=PATIENCE)
    for number in (1, 2):
        with pytest.raises(NotConnected):
            within(PATIENCE, pool._driver.open)
        assert (first.greeted, second.greeted) == (number, number)
    # An address is in the certificate, and not in the greeting.
    assert first.asked == ["localhost"] * 2
    assert second.asked == [None] * 2
    assert pool.connection.ssl["server_hostname"] is None


def test_a_repair_in_place_checks_the_name_too(
    certificates: Certificates, greeter: Callable[[str], Greeter]
) -> None:
    server = greeter("elsewhere")
    origin = kombu.Connection(
        f"amqps://localhost:{server.port}//", ssl={"ca_certs": certificates.path("ca")}
    )
    connection = ConnectionDriver(lambda: origin).new()
    with pytest.raises(ssl.SSLCertVerificationError):
        within(PATIENCE, connection._connection_factory)
    assert connection.ssl == origin.ssl


class OwnConnection(pyamqp.Connection):
    def Transport(self, *args: Any, **options: Any) -> Any:  # noqa: N802  # py-amqp's name
        return super().Transport(*args, **options)


class OwnTransport(pyamqp.Transport):
    Connection = OwnConnection


@pytest.mark.parametrize("name, greeted", [("elsewhere", 0), ("server", 1)])
def test_the_name_is_checked_for_a_connection_class_that_makes_its_transport(
    certificates: Certificates, greeter: Callable[[str], Greeter], name: str, greeted: int
) -> None:
    server = greeter(name)
    origin = kombu.Connection(
        f"amqps://localhost:{server.port}//",
        transport=OwnTransport,
        ssl={"ca_certs": certificates.path("ca")},
        connect_timeout=PATIENCE,
    )
    with pytest.raises(NotConnected):
        within(PATIENCE, ConnectionDriver(lambda: origin).open)
    assert server.greeted == greeted
    assert server.asked == ["localhost"]


@pytest.mark.broker
def test_tls_to_a_port_without_it(amqp_url: str) -> None:
    # With its port, since the default port of amqps:// is another one.
    where = urlsplit(amqp_url).netloc
    rest = amqp_url.partition("://")[2].removeprefix(where)
    url = f"amqps://{where if urlsplit(amqp_url).port else f'{where}:{port_of(amqp_url)}'}{rest}"
    error = refusal(connections[url])
    assert "does not speak TLS at this port" in str(error)
    assert not may_pass(error)


def test_files_that_are_not_there(certificates: Certificates, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        origin = kombu.Connection(
            f"amqps://127.0.0.1:{listener.getsockname()[1]}//",
            ssl={"ca_certs": str(tmp_path / "missing.pem")},
        )
        with pytest.raises(NotConnected, match=r"missing\.pem' is not there") as caught:
            within(PATIENCE, ConnectionDriver(lambda: origin).open)
        assert not may_pass(caught.value)


# -- real brokers --------------------------------------------------------------------------------------


@pytest.mark.broker
def test_an_amqps_url_in_use(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(node.certificate))
    with alias(node.tls_url).acquire(timeout=PATIENCE) as connection:
        kombu.Queue("tls", durable=False, auto_delete=True)(connection.default_channel).declare()
        assert "TLS" in connection.connection.transport.sock.version()


class RedisWithTLS(PrivateRedis):
    """Asks for a client's certificate."""

    certificates: Certificates

    def __init__(self) -> None:
        super().__init__()
        self.tls_port = free_port()

    def command(self) -> list[str]:
        files = self.certificates
        return [
            *super().command(),
            *("--tls-port", str(self.tls_port), "--tls-auth-clients", "yes"),
            *("--tls-cert-file", files.path("server"), "--tls-key-file", files.key("server")),
            *("--tls-ca-cert-file", files.path("ca")),
        ]


@pytest.fixture(scope="module")
def tls_redis(certificates: Certificates) -> Iterator[RedisWithTLS]:
    kind = type("RedisWithTLS", (RedisWithTLS,), {"certificates": certificates})
    yield from _private(kind, "Redis")


@pytest.mark.redis
@pytest.mark.threads
def test_redis_with_certificates_on_both_sides(
    certificates: Certificates, tls_redis: RedisWithTLS
) -> None:
    url = f"rediss://localhost:{tls_redis.tls_port}/0"
    options = {"ssl_ca_certs": certificates.path("ca")}
    error = refusal(alias(url, SSL=options))
    assert "ssl_certfile" in str(error)
    mine = {
        "ssl_certfile": certificates.path("client"),
        "ssl_keyfile": certificates.key("client"),
    }
    with alias(url, SSL={**options, **mine}).acquire(timeout=PATIENCE) as connection:
        assert connection.default_channel.client.ping()
    query = "&".join(f"{name}={value}" for name, value in {**options, **mine}.items())
    with connections[f"{url}?{query}"].acquire(timeout=PATIENCE) as connection:
        assert connection.default_channel.client.ping()
    # Nobody has signed for this authority; and nobody asks whether that is right.
    unchecked = {**mine, "ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}
    with alias(url, SSL=unchecked).acquire(timeout=PATIENCE) as connection:
        assert connection.default_channel.client.ping()
    assert "nobody known has signed" in str(refusal(alias(url, SSL=mine)))


@pytest.mark.broker
@pytest.mark.slow
def test_rabbitmq_with_certificates_on_both_sides(certificates: Certificates) -> None:
    port = free_port()
    config = {
        "listeners.ssl.1": f"127.0.0.1:{port}",
        "ssl_options.certfile": certificates.path("server"),
        "ssl_options.keyfile": certificates.key("server"),
        "ssl_options.cacertfile": certificates.path("ca"),
        "ssl_options.verify": "verify_peer",
        "ssl_options.fail_if_no_peer_cert": "true",
    }
    url = f"amqps://guest:guest@localhost:{port}//"
    ca = {"ca_certs": certificates.path("ca")}
    for _ in _private(lambda: PrivateRabbitMQ(config), "RabbitMQ"):  # type: ignore[type-var]  # makes a server
        began = time.monotonic()
        for own in ("", "stranger"):
            mine = {"certfile": certificates.path(own), "keyfile": certificates.key(own)}
            error = refusal(
                alias(url, SSL={**ca, **(mine if own else {})}, CONNECT_TIMEOUT=PATIENCE)
            )
            assert "asks for a client's certificate, set SSL's 'certfile' and 'keyfile'" in str(
                error
            )
            assert not may_pass(error.__cause__ or error)
        assert time.monotonic() - began < PATIENCE
        mine = {"certfile": certificates.path("client"), "keyfile": certificates.key("client")}
        with alias(url, SSL={**ca, **mine}).acquire(timeout=PATIENCE) as connection:
            assert connection.connected
