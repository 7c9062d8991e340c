"""The proxy that the tests break connections with: each fault is what its name says, and no script breaks the proxy."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import kombu
import pytest
from hypothesis import given, settings

from tests.proxy import BOTH, TO_CLIENT, TO_SERVER, BadScript, Frame, Peer, Proxy
from tests.proxy.frames import KINDS, METHODS, Frames
from tests.proxy.script import ACTIONS, read

PATIENCE = 30.0
#: Seconds in which nothing must come; were it to come, it would within a millisecond.
SILENCE = 0.05


def echo(sock: socket.socket) -> None:
    while said := sock.recv(65536):
        sock.sendall(said)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Before a server that says what it hears."""
    with Peer(echo) as peer, Proxy("127.0.0.1", peer.port) as one:
        yield one


@pytest.fixture
def dial(proxy: Proxy) -> Iterator[Callable[[], socket.socket]]:
    socks: list[socket.socket] = []

    def one() -> socket.socket:
        socks.append(socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE))
        return socks[-1]

    yield one
    for sock in socks:
        sock.close()


def hear(sock: socket.socket, count: int) -> bytes:
    """That many bytes, or those before the end."""
    said = b""
    while len(said) < count and (more := sock.recv(count - len(said))):
        said += more
    return said


def says(sock: socket.socket, what: bytes) -> bytes:
    sock.sendall(what)
    return hear(sock, len(what))


def silent(sock: socket.socket) -> bool:
    sock.settimeout(SILENCE)
    try:
        return sock.recv(1) is None
    except TimeoutError:
        return True
    finally:
        sock.settimeout(PATIENCE)


def held() -> set[object]:
    """The threads and the descriptors of this process."""
    descriptors: set[object] = set()
    for one in os.listdir("/dev/fd"):
        # But for the one that lists them, each leads to something that has a number of its own.
        with contextlib.suppress(OSError):
            descriptors.add((one, os.fstat(int(one)).st_ino))
    return descriptors | set(threading.enumerate())


Dial = Callable[[], socket.socket]


def test_what_passes_is_passed_and_counted(proxy: Proxy, dial: Dial) -> None:
    first, second = dial(), dial()
    assert says(first, b"one") == b"one"
    assert says(second, b"x" * 300_000) == b"x" * 300_000
    assert proxy.accepted == len(proxy.alive) == 2
    assert [link.sent(TO_SERVER) for link in proxy.links] == [b"one", b"x" * 300_000]
    first.close()
    assert proxy.wait_for(lambda: len(proxy.alive) == 1)
    assert says(second, b"two") == b"two"


def test_what_has_ended_is_forgotten_and_what_comes_meanwhile_is_served(
    proxy: Proxy, dial: Dial
) -> None:
    over = threading.Event()

    def forget() -> None:
        while not over.is_set():
            proxy.forget()

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        for _ in range(200):
            sock = dial()
            assert says(sock, b"hello") == b"hello"
            sock.close()
    finally:
        over.set()
        thread.join()
    assert proxy.wait_for(lambda: not proxy.alive)
    proxy.forget()
    assert proxy.links == []
    assert proxy.accepted == 200


def test_cut_and_reset(proxy: Proxy, dial: Dial) -> None:
    sock = dial()
    says(sock, b"hello")
    proxy.cut()
    assert sock.recv(1) == b""
    sock = dial()
    says(sock, b"hello")
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        sock.recv(1)
    assert says(dial(), b"again") == b"again"


@pytest.mark.parametrize("direction", BOTH)
def test_a_held_direction_is_silent_until_it_is_healed(
    proxy: Proxy, dial: Dial, direction: str
) -> None:
    old = dial()
    says(old, b"hello")
    proxy.hold(direction)
    new = dial()
    for sock in (old, new):
        sock.sendall(b"later")
        assert silent(sock)
    proxy.heal()
    assert hear(old, 5) == hear(new, 5) == b"later"


@pytest.mark.parametrize("direction", BOTH)
def test_what_is_dropped_never_arrives(proxy: Proxy, dial: Dial, direction: str) -> None:
    sock = dial()
    says(sock, b"hello")
    proxy.drop(direction)
    sock.sendall(b"lost")
    assert proxy.wait_for(
        lambda: (
            proxy.links[0].halves[direction].received.endswith(b"lost")
            and not proxy.links[0].halves[direction].waiting
        )
    )
    assert silent(sock)
    proxy.heal()
    assert says(sock, b"found") == b"found"


def test_a_dropped_end_never_arrives(proxy: Proxy, dial: Dial) -> None:
    sock = dial()
    says(sock, b"hello")
    proxy.drop(TO_SERVER)
    sock.close()
    assert proxy.wait_for(lambda: proxy.links[0].halves[TO_SERVER].ended)
    assert proxy.alive


def test_half_closed_to_the_client(dial: Dial, proxy: Proxy) -> None:
    sock = dial()
    says(sock, b"hello")
    proxy.half_close(TO_CLIENT)
    assert sock.recv(1) == b""
    sock.sendall(b"still heard")
    assert proxy.wait_for(lambda: proxy.links[0].sent(TO_CLIENT) == b"hellostill heard")
    assert proxy.alive


def test_half_closed_to_the_server() -> None:
    def late(sock: socket.socket) -> None:
        while sock.recv(100):
            pass
        sock.sendall(b"is that all?")

    with Peer(late) as peer, Proxy("127.0.0.1", peer.port) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as sock:
            sock.sendall(b"hello")
            assert proxy.wait_for(
                lambda: bool(proxy.links) and bool(proxy.links[0].sent(TO_SERVER))
            )
            proxy.half_close(TO_SERVER)
            assert hear(sock, 100) == b"is that all?"


def test_delay_round_trip_and_drip(proxy: Proxy, dial: Dial) -> None:
    sock = dial()
    says(sock, b"hello")
    proxy.delay(0.02, TO_CLIENT)
    began = time.monotonic()
    says(sock, b"late")
    assert time.monotonic() - began >= 0.02
    proxy.heal()
    proxy.round_trip(0.04)
    began = time.monotonic()
    says(sock, b"late")
    assert time.monotonic() - began >= 0.04
    proxy.heal()
    proxy.drip(0.01, TO_SERVER)
    began = time.monotonic()
    assert says(sock, b"drops") == b"drops"
    assert time.monotonic() - began >= 4 * 0.01


def test_refused(proxy: Proxy, dial: Dial) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        dial().recv(1)
    proxy.heal()
    assert says(dial(), b"hello") == b"hello"


def test_a_blackhole_answers_nobody(proxy: Proxy, dial: Dial) -> None:
    old = dial()
    says(old, b"hello")
    proxy.blackhole()
    old.sendall(b"later")
    assert silent(old)
    with socket.socket() as late:
        late.settimeout(SILENCE)
        with pytest.raises(TimeoutError):
            late.connect(("127.0.0.1", proxy.port))
        proxy.heal()
        assert hear(old, 5) == b"later"
        assert says(dial(), b"hello") == b"hello"
    assert proxy.accepted >= 2


# -- scripts -----------------------------------------------------------------------------------------------------------


def test_a_script_strikes_at_its_byte(proxy: Proxy, dial: Dial) -> None:
    proxy.play([(TO_CLIENT, 7, "cut")], coming=1)
    sock = dial()
    sock.sendall(b"x" * 100)
    assert hear(sock, 100) == b"x" * 7
    assert says(dial(), b"y" * 100) == b"y" * 100


def test_a_script_strikes_at_once_where_the_place_has_passed(proxy: Proxy, dial: Dial) -> None:
    sock = dial()
    says(sock, b"x" * 10)
    proxy.play([(TO_CLIENT, 10, "reset"), (TO_CLIENT, 10_000, "silence")])
    with pytest.raises(ConnectionResetError):
        sock.recv(1)


def test_the_steps_of_a_script_follow_each_other(proxy: Proxy, dial: Dial) -> None:
    proxy.play(
        [
            (TO_CLIENT, 2, "garble", 0x20),
            (TO_CLIENT, 4, "drop"),
            (TO_SERVER, 8, "heal"),
            (TO_CLIENT, 9, "cut"),
        ]
    )
    sock = dial()
    sock.sendall(b"abcdefg")
    assert hear(sock, 4) == b"abCd"
    assert proxy.wait_for(lambda: proxy.links[0].halves[TO_CLIENT].position == 7)
    sock.sendall(b"h")
    # Healed, so the rest of the script is forgotten.
    assert hear(sock, 1) == b"h"
    assert says(sock, b"ijk") == b"ijk"


def test_a_script_drips_and_delays(proxy: Proxy, dial: Dial) -> None:
    proxy.play([(TO_CLIENT, 2, "drip", 0.01), (TO_SERVER, 5, "delay", 0.02)])
    sock = dial()
    began = time.monotonic()
    assert says(sock, b"drops") == b"drops"
    assert time.monotonic() - began >= 2 * 0.01
    began = time.monotonic()
    assert says(sock, b"!") == b"!"
    assert time.monotonic() - began >= 0.02


def test_one_direction_heals_the_other(proxy: Proxy, dial: Dial) -> None:
    proxy.play([(TO_CLIENT, 0, "hold"), (TO_SERVER, 10, "heal")])
    sock = dial()
    sock.sendall(b"123456789")
    assert silent(sock)
    sock.sendall(b"0")
    assert hear(sock, 10) == b"1234567890"


def test_the_last_step_ends_it(proxy: Proxy, dial: Dial) -> None:
    proxy.play([(TO_CLIENT, 3, "half-close"), (TO_SERVER, 5, "cut")])
    sock = dial()
    sock.sendall(b"abc")
    assert hear(sock, 9) == b"abc"
    assert proxy.alive
    sock.sendall(b"defg")
    assert proxy.wait_for(lambda: not proxy.alive)


@pytest.mark.parametrize("at", [0, 1, 3, 7, 9, -1])
def test_a_script_strikes_inside_a_frame(amqp_url: str, at: int) -> None:
    """The broker gets so many bytes of the frame that asks for a queue, and not one more."""
    direct = kombu.Connection(amqp_url)
    with Proxy(direct.hostname, direct.port or 5672) as proxy:
        direct.hostname, direct.port = "127.0.0.1", proxy.port
        with direct as connection:
            channel = connection.channel()
            proxy.play([(TO_SERVER, Frame("queue.declare", at), "reset")])
            with pytest.raises(connection.connection_errors):
                channel.queue_declare("never-made", passive=True)
        half = proxy.links[0].halves[TO_SERVER]
        sent = bytes(half.received)
    begun = sent.rindex(b"\x00\x32\x00\x0a") - 7
    assert half.position == (begun + at if at >= 0 else len(sent) - 1)


def test_frames_are_found_however_the_stream_is_chopped() -> None:
    heartbeat = b"\x08\x00\x00\x00\x00\x00\x00\xce"
    publish = b"\x01\x00\x01\x00\x00\x00\x05\x00\x3c\x00\x28!\xce"
    body = b"\x03\x00\x01\x00\x00\x00\x02hi\xce"
    stream = b"AMQP\x00\x00\x09\x01" + heartbeat + publish + body
    for size in range(1, len(stream) + 1):
        frames = Frames()
        for end in range(size, len(stream) + size, size):
            frames.look(bytearray(stream[:end]))
        assert [seen.start for seen in frames.seen] == [8, 16, 29]
        assert frames.find(Frame("basic.publish", -1), 0) == 28
        assert frames.find(Frame("body", 7), 0) == 36
        assert frames.find(Frame(0), 0) == 8
        assert frames.find(Frame(3), 0) is frames.find(Frame("method"), 17) is None


def test_a_bad_script_is_refused_with_everything_that_is_wrong() -> None:
    with Proxy() as proxy, pytest.raises(BadScript) as caught:
        proxy.play(
            [
                ("to the cleint", 1, "cut"),
                (TO_CLIENT, -1, "cutt"),
                (TO_CLIENT, Frame("basic.publsh", 1.5), "drip"),  # type: ignore[arg-type]  # what is tested
                (TO_CLIENT, True, "garble", 256),
                (TO_CLIENT, 1, "cut", 1),
                (TO_CLIENT, 1),
                (TO_CLIENT, Frame(3, -1), "delay", 0.5),
            ]
        )
    assert caught.value.problems == [
        "step 1: no direction: 'to the cleint'; 'to the client'?",
        "step 2: no place: -1; a number of bytes or a Frame is wanted",
        "step 2: no action: 'cutt'; 'cut'?",
        "step 3: no frame: 'basic.publsh'; 'basic.publish'?",
        "step 3: no place in a frame: 1.5",
        "step 3: 'drip' wants seconds",
        "step 4: no place: True; a number of bytes or a Frame is wanted",
        "step 4: 'garble' wants a byte, not 256",
        "step 5: 'cut' takes no argument: 1",
        "step 6: (direction, place, action) is wanted, perhaps with an argument, not ('to the client', 1)",
    ]


# -- any script --------------------------------------------------------------------------------------------------------

frames = st.builds(
    Frame,
    st.one_of(st.integers(0, 3), st.sampled_from([*KINDS, "basic.publish"])),
    st.integers(-20, 20),
)
arguments = {None: (), "seconds": (st.floats(0, 0.002),), "a byte": (st.integers(1, 255),)}
steps = st.one_of(
    *(
        st.tuples(
            st.sampled_from(BOTH),
            st.one_of(st.integers(0, 60), frames),
            st.just(action),
            *arguments[wanted],
        )
        for action, wanted in ACTIONS.items()
    )
)
junk = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=12),
        st.binary(max_size=4),
        st.sampled_from([*BOTH, *ACTIONS]),
        st.builds(Frame, st.one_of(st.none(), st.integers(), st.text(max_size=6)), st.floats()),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, min_size=3, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=2),
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(st.one_of(junk, st.lists(st.one_of(steps, junk), max_size=5)))
def test_any_junk_is_a_script_or_is_refused(script: Any) -> None:
    problems = None
    try:
        played = read(script)
    except BadScript as refused:
        problems = refused.problems
    else:
        assert len(played) == len(script)
        assert all(step.action in ACTIONS for step in played)
    assert problems != []


@settings(max_examples=40)
@given(
    script=st.lists(steps, max_size=5),
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=4),
    early=st.booleans(),
)
def test_any_script_leaves_the_proxy_usable_and_nothing_behind(
    script: list[Any], chunks: list[bytes], early: bool
) -> None:
    before = held()
    with Peer(echo) as peer, Proxy("127.0.0.1", peer.port) as proxy, socket.socket() as sock:
        where = ("127.0.0.1", proxy.port)
        sock.settimeout(PATIENCE)
        if early:
            proxy.play(script)
        try:
            # Even this may be reset by a script that was played early.
            sock.connect(where)
            sock.settimeout(0.002)
            for chunk in chunks:
                sock.sendall(chunk)
            if not early:
                proxy.play(script)
            while sock.recv(100):
                pass
        except OSError:
            pass  # as the script has it
        proxy.heal()
        with socket.create_connection(where, timeout=PATIENCE) as other:
            assert says(other, b"hello") == b"hello"
    # What is not there yet may be another test's, whose threads come to their end meanwhile.
    assert proxy.wait_for(lambda: held() <= before), held() - before


def test_every_method_has_its_name() -> None:
    assert METHODS["basic.publish"] == (60, 40)
    assert METHODS["basic.get-ok"] == (60, 71)
    assert METHODS["connection.start-ok"] == (10, 11)
