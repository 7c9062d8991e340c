"""Below py-amqp's frames: one writer at a time, deadlines in total, and nothing after half a frame."""

from __future__ import annotations

import select
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest

from kombu_pools_ext import pools
from kombu_pools_ext.broker.amqp.transport import HEARTBEAT, TCPTransport, TLSTransport
from kombu_pools_ext.broker.plain import PlainSession
from kombu_pools_ext.broker.sockets import Within
from tests.broker.common import PATIENCE, eventually, within
from tests.wanted import without

FRAME_MAX = 4096
#: A method frame of channel 1 with a payload of 40 bytes.
FRAME = b"\x01\x00\x01\x00\x00\x00\x28" + bytes(range(40)) + b"\xce"
#: More than the buffers of two sockets hold.
FLOOD = b"\x03\x00\x01" + bytes(16_000_000)
#: Seconds of a deadline that is meant to pass.
SOON = 0.1


class Ends:
    """A transport, and the socket of its peer."""

    def __init__(self, transport: Any, peer: Any) -> None:
        self.transport = transport
        self.peer = peer
        transport.opened(FRAME_MAX)

    def soon(self) -> Any:
        return self.within(time.monotonic() + SOON)

    def within(self, deadline: float | None) -> Any:
        return Within(self.transport.session, deadline)

    def heard(self, size: int) -> bytes:
        """The next bytes that the peer gets."""
        said = b""
        while len(said) < size:
            said += self.peer.recv(size - len(said))
        return said

    def swallow(self, size: int) -> None:
        """Read as many bytes at the peer, and forget them."""
        while size:
            data = self.peer.recv(min(size, 65536))
            assert data
            size -= len(data)


@pytest.fixture(scope="session")
def tls_contexts(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's and a server's, with a certificate that nobody looks at."""
    if shutil.which("openssl") is None:
        without("openssl", "certificates are made with it")
    folder: Path = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    subprocess.run(
        [
            *("openssl", "req", "-x509", *curve, "-nodes", "-subj", "/CN=localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    # TLS 1.3's session tickets come unasked, on a busy machine in the middle of a test.
    server.num_tickets = 0
    return client, server


@pytest.fixture(params=["tcp", "tls"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near: Any = socket.create_connection(server.getsockname())
        far: Any = server.accept()[0]
    transport: Any = TCPTransport("h") if request.param == "tcp" else TLSTransport("h")
    if request.param == "tls":
        client_context, server_context = request.getfixturevalue("tls_contexts")
        shaken: list[Any] = []
        thread = threading.Thread(
            target=lambda: shaken.append(server_context.wrap_socket(far, server_side=True))
        )
        thread.start()
        near = client_context.wrap_socket(near)
        thread.join(PATIENCE)
        far = shaken[0]
    transport.sock, transport.connected = near, True
    made = Ends(transport, far)
    yield made
    for sock in (near, far):
        sock.close()


def test_a_write_reads_what_the_peer_has_to_say_before_it_reads(ends: Ends) -> None:
    """Both have more to say than the buffers hold: whoever only writes waits for the other one."""
    frame = b"\x03\x00\x01\x00\x00\x0f\xf0" + bytes(0xFF0) + b"\xce"
    told = frame * 1500
    peer = threading.Thread(target=lambda: (ends.peer.sendall(told), ends.swallow(len(FLOOD))))
    peer.start()
    with ends.within(time.monotonic() + PATIENCE):
        ends.transport.write(FLOOD)
        assert ends.transport.look() == "readable"
        # Whole, and in the order in which it came, a part of it read before and a part after.
        for _ in range(1500):
            assert ends.transport.read_frame() == (3, 1, memoryview(frame)[7:-1])
    peer.join(PATIENCE)
    assert not peer.is_alive()
    assert ends.transport.look() is None
    assert not ends.transport.torn


def test_a_peer_that_has_said_its_last_word_is_written_to_all_the_same(ends: Ends) -> None:
    ends.peer.sendall(FRAME)
    if not isinstance(ends.transport, TLSTransport):
        # TLS's last word is for both directions.
        ends.peer.shutdown(socket.SHUT_WR)
    peer = threading.Thread(target=ends.swallow, args=(len(FLOOD),))
    peer.start()
    with ends.within(time.monotonic() + PATIENCE):
        ends.transport.write(FLOOD)
        assert ends.transport.read_frame()[0] == 1
    peer.join(PATIENCE)
    assert not peer.is_alive()


def test_frames_pass(ends: Ends) -> None:
    for bound in (None, time.monotonic() + PATIENCE):
        with ends.within(bound):
            ends.transport.write(memoryview(FRAME))
            assert ends.heard(len(FRAME)) == FRAME
            ends.peer.sendall(FRAME)
            assert ends.transport.read_frame() == (1, 1, bytes(range(40)))
    assert "whole" in repr(ends.transport)


def test_a_silent_peer_holds_nobody_up(ends: Ends) -> None:
    with pytest.raises(TimeoutError), ends.soon():
        ends.transport.read_frame()
    # Nothing was lost: the connection may be read later on.
    ends.peer.sendall(FRAME)
    assert within(PATIENCE, ends.transport.read_frame) == (1, 1, bytes(range(40)))
    assert not ends.transport.torn
    assert ends.transport.sock.gettimeout() is None


def test_a_peer_that_drips_holds_nobody_up(ends: Ends) -> None:
    stop = threading.Event()

    def drip() -> None:
        for sent in range(1, len(FRAME)):
            ends.peer.sendall(FRAME[sent - 1 : sent])
            if stop.wait(SOON / 5):
                break
        # The end comes when the test says so, however slow it is.
        stop.wait(PATIENCE)
        ends.peer.sendall(FRAME[sent:])

    dripping = threading.Thread(target=drip, daemon=True)
    dripping.start()
    # Each byte comes well before a time-out of its own would be over.
    with pytest.raises(TimeoutError), ends.soon(), ends.transport.having_timeout(SOON):
        ends.transport.read_frame()
    assert dripping.is_alive()
    stop.set()
    dripping.join(PATIENCE)
    assert within(PATIENCE, ends.transport.read_frame) == (1, 1, bytes(range(40)))


def test_a_peer_that_reads_nothing_holds_nobody_up(ends: Ends) -> None:
    with pytest.raises(TimeoutError), ends.soon():
        ends.transport.write(FLOOD)
    # Half a frame is out: not fit for anybody, and whatever came now would be taken for the rest of it.
    assert ends.transport.torn
    assert not ends.transport.connected
    assert "torn" in repr(ends.transport)
    with pytest.raises(OSError, match="cut short"):
        ends.transport.write(FRAME)
    assert not ends.transport.beat()


def test_an_interrupted_write_is_a_torn_one(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(data: Any) -> int:
        raise KeyboardInterrupt

    ends.transport._send = ends.transport._sendall = interrupt
    with pytest.raises(KeyboardInterrupt):
        ends.transport.write(FRAME)
    assert ends.transport.torn


def test_after_the_deadline_nothing_is_begun(ends: Ends) -> None:
    ends.peer.sendall(FRAME)
    with ends.within(time.monotonic() - 1):
        with pytest.raises(TimeoutError):
            ends.transport.write(FRAME)
        with pytest.raises(TimeoutError):
            ends.transport.read_frame()


def test_the_earlier_of_two_deadlines_holds(ends: Ends) -> None:
    now = time.monotonic()
    near, far = now + 10, now + 20
    for outer, inner, holds in [
        (near, far, near),
        (far, near, near),
        (near, None, near),
        (None, near, near),
        (None, None, None),
    ]:
        with ends.within(outer):
            with ends.within(inner):
                assert ends.transport.session.deadline == holds
            assert ends.transport.session.deadline == outer
        assert ends.transport.session.deadline is None


@pytest.mark.parametrize("come", [0, 3, 7, 20])
def test_reading_without_waiting_does_not_wait(ends: Ends, come: int) -> None:
    # With the header there and the rest not, py-amqp alone would ask for it again and again, without end.
    ends.peer.sendall(FRAME[:come])
    transport = ends.transport

    def look() -> Any:
        with transport.having_timeout(0):
            return transport.read_frame()

    for _ in range(3):
        with pytest.raises(TimeoutError):
            within(PATIENCE, look)
    ends.peer.sendall(FRAME[come:])
    assert within(PATIENCE, transport.read_frame) == (1, 1, bytes(range(40)))


def test_the_transports_own_time_out_holds_too(ends: Ends) -> None:
    for bound in (None, time.monotonic() + PATIENCE):
        with (
            pytest.raises(TimeoutError),
            ends.within(bound),
            ends.transport.having_timeout(SOON),
        ):
            ends.transport.read_frame()


@pytest.mark.parametrize("size", [FRAME_MAX + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_frame_longer_than_was_agreed_on_is_the_end(ends: Ends, size: int) -> None:
    ends.peer.sendall(b"\x01\x00\x01" + size.to_bytes(4, "big"))
    with pytest.raises(OSError, match="4096 were agreed on") as caught:
        within(PATIENCE, ends.transport.read_frame)
    assert not isinstance(caught.value, TimeoutError)
    assert not ends.transport.connected


def test_a_hang_up_is_seen(ends: Ends) -> None:
    assert ends.transport.look() is None
    ends.peer.close()
    eventually(lambda: ends.transport.look() is not None)
    with pytest.raises(OSError, match="closed"):
        within(PATIENCE, ends.transport.read_frame)


# -- heartbeats from another thread ---------------------------------------------------


def test_a_heartbeat_goes_out(ends: Ends) -> None:
    before = ends.transport.beaten
    assert ends.transport.beat()
    assert ends.heard(len(HEARTBEAT)) == HEARTBEAT
    assert ends.transport.beaten >= before


def test_a_heartbeat_goes_out_while_the_borrower_waits(ends: Ends) -> None:
    reading = threading.Event()

    def wait() -> Any:
        reading.set()
        return ends.transport.read_frame()

    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.append(wait()), daemon=True)
    reader.start()
    assert reading.wait(PATIENCE)
    for _ in range(3):
        assert within(PATIENCE, lambda: eventually(ends.transport.beat))
    assert ends.heard(3 * len(HEARTBEAT)) == 3 * HEARTBEAT
    ends.peer.sendall(FRAME)
    reader.join(PATIENCE)
    assert found == [(1, 1, bytes(range(40)))]


def test_a_heartbeat_does_not_wait_for_a_writer(ends: Ends) -> None:
    stuck = threading.Thread(target=lambda: swallow(ends.transport.write, FLOOD), daemon=True)
    stuck.start()
    eventually(
        lambda: not ends.transport._lock.acquire(blocking=False) or ends.transport._lock.release()
    )
    # Taken within the patience of the test, and nothing came to lie inside the frame.
    assert within(PATIENCE, ends.transport.beat) is False
    ends.peer.close()
    ends.transport.close()
    stuck.join(PATIENCE)
    assert not stuck.is_alive()


def swallow(function: Callable[..., Any], *arguments: Any) -> None:
    try:
        function(*arguments)
    except (OSError, ValueError):
        pass


def fill(sock: Any) -> None:
    """Write until no byte more goes in, nor a while later: what is still on its way to the peer's buffer makes room."""
    sock.setblocking(False)
    full = 0
    while full < 3:
        try:
            # Of TLS, gevent's returns 0 instead of raising.
            sent = sock.send(FLOOD[:16384])
        except OSError:
            sent = 0
        full = 0 if sent else full + 1
        select.select([], [sock], [], 0.05)
    sock.settimeout(None)


def test_no_heartbeat_into_a_full_buffer(ends: Ends) -> None:
    fill(ends.transport.sock)
    assert within(PATIENCE, ends.transport.beat) is False
    assert not ends.transport.torn
    # OpenSSL has a record under way, which is this test's doing.
    if isinstance(ends.transport, TCPTransport):
        with pytest.raises(TimeoutError), ends.soon():
            ends.transport.write(FRAME)
        assert ends.transport.torn


def test_half_a_heartbeat_is_half_a_frame(ends: Ends) -> None:
    def begin(data: bytes) -> int:
        if isinstance(ends.transport, TLSTransport):
            raise ssl.SSLWantWriteError
        return len(data) // 2

    ends.transport._send = begin
    assert not ends.transport.beat()
    assert ends.transport.torn


def test_whoever_is_overtaken_by_the_close_gets_an_error_of_the_transport(ends: Ends) -> None:
    if isinstance(ends.transport, TLSTransport):
        ends.transport.sock._sslobj = None  # as unwrap() does, before the socket is closed
        assert not ends.transport.beat()
    else:
        ends.transport.sock.close()
    for use in (ends.transport.read_frame, lambda: ends.transport.write(FRAME)):
        with pytest.raises(OSError) as caught:
            within(PATIENCE, use)
        assert not isinstance(caught.value, TimeoutError)


def test_no_heartbeat_after_the_end(ends: Ends) -> None:
    ends.peer.close()
    ends.transport.close()
    # Another socket could have got the descriptor.
    assert not ends.transport.beat()
    assert "ended" in repr(ends.transport)


def test_a_heartbeat_to_a_dead_peer_is_no_error(ends: Ends) -> None:
    ends.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    ends.peer.close()
    eventually(lambda: not ends.transport.beat())


@pytest.mark.threads
def test_heartbeats_never_come_to_lie_inside_a_frame(ends: Ends) -> None:
    stop = threading.Event()

    def beat() -> None:
        while not stop.is_set():
            ends.transport.beat()

    count = 300
    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    writing = threading.Thread(
        target=lambda: [ends.transport.write(FRAME) for _ in range(count)], daemon=True
    )
    writing.start()
    frames = beats = 0
    while frames < count or not beats:
        header = ends.heard(7)
        rest = ends.heard(int.from_bytes(header[3:7], "big") + 1)
        if header[0] == 8:
            assert header + rest == HEARTBEAT
            beats += 1
        else:
            assert header + rest == FRAME
            frames += 1
    stop.set()
    beating.join(PATIENCE)
    writing.join(PATIENCE)


# -- in the pool ----------------------------------------------------------------------------


def test_every_amqp_connection_has_one(amqp_url: str) -> None:
    pool = pools.ConnectionPool(kombu.Connection(amqp_url), limit=1)
    with pool.acquire(timeout=PATIENCE) as lease:
        item = lease.item
        assert item.pooled_session.transport is not None
        assert item.pooled_session.transport.belongs_to(item.established)
        with item.within(time.monotonic() + PATIENCE):
            lease.channel().close()
    pool.force_close_all()
    assert not item.pooled_session.transport.beat()


def test_other_transports_have_none(memory_url: str) -> None:
    pool = pools.ConnectionPool(kombu.Connection(memory_url), limit=1)
    with pool.acquire(timeout=PATIENCE) as lease:
        assert isinstance(lease.item.pooled_session, PlainSession)
        with lease.item.within(time.monotonic() - 1):
            lease.default_channel.queue_declare("q")
    pool.force_close_all()


def test_a_torn_connection_is_not_lent_again(amqp_url: str) -> None:
    pool = pools.ConnectionPool(kombu.Connection(amqp_url), limit=1)
    lease = pool.acquire(timeout=PATIENCE)
    with pytest.raises(TimeoutError), lease.item.within(time.monotonic() - 1):
        lease.connection.send_heartbeat()
    # The borrower has swallowed it, and says nothing.
    lease.release()
    assert pool.stats().closed == {"broken": 1}
    pool.force_close_all()
