"""What the tests of the broker's side share: who has which socket, who closes what, and children to ask."""

from __future__ import annotations

import faulthandler
import os
import pickle
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import kombu
import pytest

from tests.broker.common import PATIENCE, eventually
from tests.brokers import PrivateRabbitMQ, free_port
from tests.conftest import _private
from tests.proxy import Proxy
from tests.wanted import without

__all__ = [
    "AMQP",
    "BROKERS",
    "REDISS",
    "broker_url",
    "confirming",
    "in_child",
    "mute",
    "node",
    "nowhere",
    "port_of",
    "proxied",
    "sockets_to",
    "through",
]


#: redis-py shakes hands while it wraps a socket, and eventlet leaves that to the garbage when it fails.
REDISS = pytest.param("rediss", marks=pytest.mark.threads)


def port_of(url: str) -> int:
    """The port of a broker's URL."""
    parts = urlsplit(url)
    return parts.port or {"redis": 6379, "amqps": 5671}.get(parts.scheme, 5672)


def through(proxy: Proxy, url: str) -> str:
    """*url*, but by way of *proxy*."""
    parts = urlsplit(url)
    credentials = parts.netloc.rpartition("@")[0]
    netloc = f"{credentials}@{proxy.address}" if credentials else proxy.address
    # By hand: urlunsplit() makes one of the two slashes of the default virtual host.
    return f"{parts.scheme}://{netloc}{url.partition('://')[2][len(parts.netloc) :]}"


def confirming(url: str, **options: Any) -> kombu.Connection:
    """A connection whose publishes wait for the broker's word."""
    return kombu.Connection(url, transport_options={"confirm_publish": True}, **options)


def sockets_to(port: int) -> dict[int, int]:
    """This process's sockets to a local port: descriptors, by inode."""
    found = {}
    for name in os.listdir("/dev/fd"):
        try:
            status = os.fstat(int(name))
            if not stat.S_ISSOCK(status.st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as copy:
                peer = copy.getpeername()
        except OSError:
            continue
        if isinstance(peer, tuple) and len(peer) > 1 and peer[1] == port:
            found[status.st_ino] = int(name)
    return found


def in_child(work: Callable[[], Any], fork: Callable[[], int] = os.fork) -> Any:
    """What *work* returns in a forked child of this process; its exception fails the test, and so does its silence."""
    with tempfile.TemporaryFile("w+") as stacks:
        return _in_child(work, fork, stacks)


def _in_child(work: Callable[[], Any], fork: Callable[[], int], stacks: IO[str]) -> Any:
    """:func:`in_child`; a child that hangs writes where each of its threads is to *stacks*."""
    reading, writing = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            os.close(reading)
            # The interpreter does not need to be able to run for that.
            faulthandler.register(signal.SIGUSR1, file=stacks)
            try:
                answer = True, work()
            except BaseException:
                answer = False, traceback.format_exc()
            os.write(writing, pickle.dumps(answer))
            # Now, because coverage takes its time at the end of a process.
            os.close(writing)
        finally:
            os._exit(0)
    os.close(writing)
    said, deadline = b"", time.monotonic() + PATIENCE
    try:
        while True:
            ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                os.kill(pid, signal.SIGUSR1)
                eventually(lambda: os.fstat(stacks.fileno()).st_size)
                stacks.seek(0)
                raise AssertionError(
                    f"the child has not answered within {PATIENCE:g} s\n{stacks.read()}"
                )
            chunk = os.read(reading, 65536)
            if not chunk:
                break
            said += chunk
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(reading)
        os.waitpid(pid, 0)
    assert said, "the child died without a word"
    well, answer = pickle.loads(said)
    assert well, f"in the child:\n{answer}"
    return answer


# -- fixtures ----------------------------------------------------


@pytest.fixture
def proxied() -> Iterator[Callable[[str], Proxy]]:
    """Makes a running proxy before the broker of a URL."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(Proxy("127.0.0.1", port_of(url)))


@pytest.fixture
def nowhere() -> Iterator[int]:
    """A port at which whoever connects is refused: it is bound, so nobody else begins to listen on it meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


@pytest.fixture
def mute() -> Iterator[Proxy]:
    """A peer that accepts, and says nothing."""
    with Proxy() as proxy:
        yield proxy


class Node(PrivateRabbitMQ):
    """A RabbitMQ node that speaks TLS too, where there is an openssl to make a certificate with."""

    def __init__(self) -> None:
        super().__init__()
        self.tls_port: int | None = free_port() if shutil.which("openssl") else None

    @property
    def certificate(self) -> Path:
        """The certificate, which vouches for itself."""
        return self.folder / "certificate.pem"

    def start(self) -> None:
        if self.tls_port is not None and not self.config:
            key, certificate = self.folder / "key.pem", self.certificate
            subprocess.run(
                [
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "rsa:2048",
                    "-nodes",
                    "-days",
                    "2",
                    "-subj",
                    "/CN=localhost",
                    "-addext",
                    "subjectAltName=DNS:localhost,IP:127.0.0.1",
                    "-keyout",
                    str(key),
                    "-out",
                    str(certificate),
                ],
                check=True,
                capture_output=True,
            )
            self.config = {
                "listeners.ssl.1": f"127.0.0.1:{self.tls_port}",
                "ssl_options.certfile": str(certificate),
                "ssl_options.keyfile": str(key),
            }
        super().start()

    @property
    def tls_url(self) -> str:
        """The URL for TLS, for clients that trust :attr:`certificate`."""
        if self.tls_port is None:
            without("openssl", "certificates are made with it")
        return f"amqps://guest:guest@127.0.0.1:{self.tls_port}//"

    def log(self, port: int) -> str:
        """What the node has logged so far of the connection that comes from *port*."""
        lines = (self.folder / "output.log").read_text(errors="replace").splitlines()
        # RabbitMQ 3 names the process a second time, and in brackets who comes.
        names = re.compile(rf"(<\S+>) accepting AMQP connection (?:<\S+> \()?127\.0\.0\.1:{port} ")
        found = [match[1] for line in lines if (match := names.search(line))]
        # A port may come again; the last one is meant.
        return "\n".join(line for line in lines if found and found[-1] in line)


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    """A RabbitMQ node that many tests share, so nobody kills it."""
    yield from _private(Node, "RabbitMQ")


#: Those of RabbitMQ.
AMQP = [pytest.param(scheme, marks=pytest.mark.broker) for scheme in ("amqp", "amqps")]
#: Each kind of broker that has sockets, for the fixture ``broker_url``.
BROKERS = [*AMQP, pytest.param("redis", marks=pytest.mark.redis)]


@pytest.fixture(params=BROKERS)
def broker_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of :data:`BROKERS` in turn."""
    if request.param == "amqps":
        node: Node = request.getfixturevalue("node")
        monkeypatch.setenv("SSL_CERT_FILE", str(node.certificate))
        return node.tls_url
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found
