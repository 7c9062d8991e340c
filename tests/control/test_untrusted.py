"""Peers that may not use a process's socket or directory are refused and logged, and have no other effect."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kombu
import pytest

import kombu_pools_ext
from kombu_pools_ext import Pools
from kombu_pools_ext.control import Control, attach, log, protocol, serve, server, socket_dir
from kombu_pools_ext.control.socket_dir import SocketDir, SocketName
from kombu_pools_ext.errors import ControlError
from tests.control.rig import (
    NOBODY,
    PATIENCE,
    SECRET,
    Base,
    Child,
    memory,
    needs_root,
    until,
)


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let warnings that are logged once be logged again in each test."""
    monkeypatch.setattr(log, "_logged", set())


def key_of(control: Control) -> bytes:
    key = control.project.key("socket")
    assert key is not None
    return key


@contextlib.contextmanager
def caller(base: Base) -> Iterator[protocol.Stream]:
    """A caller that is connected to the only socket, and has not authenticated."""
    [path] = base.sockets()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        yield protocol.Stream(sock, time.monotonic() + PATIENCE)


@contextlib.contextmanager
def proven(base: Base, control: Control) -> Iterator[protocol.Stream]:
    """A caller that has authenticated, and got the name of the process."""
    with caller(base) as stream:
        protocol.authenticate(stream, key_of(control), is_client=True)
        assert stream.receive(8192)["process"]["pid"] == os.getpid()
        yield stream


def hung_up(stream: protocol.Stream) -> bool:
    """Wait until the peer closes the connection."""
    with contextlib.suppress(ConnectionError, EOFError):
        while True:
            stream.recv_bytes(10**6)
    return True


def works(control: Control) -> bool:
    answers = control.ask("status", timeout=PATIENCE)
    return answers.ok and len(answers.answers) == 1


# -- callers -----------------------------------------------------------------------------------------------------------


def not_a_word(stream: protocol.Stream) -> None:
    stream.sock.shutdown(socket.SHUT_WR)


def garbage(stream: protocol.Stream) -> None:
    stream.sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


def giant(stream: protocol.Stream) -> None:
    stream.sock.sendall(struct.pack("!i", 2**31 - 1))


def negative(stream: protocol.Stream) -> None:
    stream.sock.sendall(struct.pack("!i", -1) + struct.pack("!Q", 2**62))


def wrong_key(stream: protocol.Stream) -> None:
    with contextlib.suppress(protocol.UntrustedPeer):
        protocol.authenticate(stream, b"k" * 32, is_client=True)


def as_the_other_end(stream: protocol.Stream) -> None:
    # What the process asks is sent back to it, as if it were the one that proves.
    stream.send_bytes(stream.recv_bytes(256))


STRANGERS = [not_a_word, garbage, giant, negative, wrong_key, as_the_other_end]


def test_a_caller_that_has_disconnected_is_not_logged(
    base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    _, control = base.serve()
    with caplog.at_level(logging.DEBUG, "kombu_pools_ext.control"):
        for _ in range(3):
            # Before it has read what it is asked.
            with caller(base):
                pass
        assert works(control)
        until(lambda: server.server_of(control.project)._callers == 0)
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda one: one.__name__)
def test_an_untrusted_caller_changes_nothing_and_is_logged_once(
    base: Base, stranger: Callable[[protocol.Stream], None], caplog: pytest.LogCaptureFixture
) -> None:
    pools, control = base.serve()
    pools.connections["default"].acquire().release()
    with caplog.at_level(logging.DEBUG, "kombu_pools_ext.control"):
        for _ in range(3):
            with caller(base) as stream:
                stranger(stream)
                assert hung_up(stream)
    [record] = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert record.getMessage().startswith("control: a caller was refused: ")
    assert pools.connections["default"].stats().size == 1
    assert works(control)


def test_a_slow_caller_is_disconnected(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT", 0.5)
    _, control = base.serve()
    with caller(base) as stream:
        began = time.monotonic()
        # A byte now and then keeps nobody waiting: it is the whole that has a bound.
        with contextlib.suppress(OSError):
            while time.monotonic() - began < PATIENCE:
                stream.sock.send(b"\0")
                time.sleep(0.05)
        assert hung_up(stream)
    assert works(control)


def test_a_caller_that_never_stops_sending_is_disconnected(base: Base) -> None:
    _, control = base.serve()
    with proven(base, control) as stream:
        with contextlib.suppress(OSError):
            while True:
                stream.sock.send(b" " * 65536)
    assert works(control)


def test_a_caller_that_never_takes_its_answer_is_disconnected(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ANSWER_TIMEOUT", 0.5)
    _, control = base.serve(**{f"alias{number}": memory() for number in range(1000)})
    with proven(base, control) as stream:
        stream.send({"request": {"command": "status"}})
        # More than the system keeps for him: the process has given up, and what is left is half of it.
        until(lambda: not callers(control))
        with pytest.raises(EOFError):
            stream.recv_bytes(protocol.LARGEST_ANSWER)
    assert works(control)


def callers(control: Control) -> int:
    return server.server_of(control.project)._callers


def test_too_many_callers_are_disconnected_and_try_again(
    base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    _, control = base.serve()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(caller(base)) for _ in range(server.MOST_UNAUTHENTICATED)]
        until(lambda: callers(control) == server.MOST_UNAUTHENTICATED)
        with caller(base) as one_more:
            assert hung_up(one_more)
        heard: list[bool] = []
        asking = threading.Thread(target=lambda: heard.append(works(control)))
        asking.start()
        idle[0].close()
        asking.join(PATIENCE)
        assert heard == [True]
    assert "too many at once" in caplog.text


@pytest.mark.parametrize(
    "sent, error",
    [
        (b"not JSON", None),
        (b"[" * 60000, None),
        (b"[]", "expected a command with its arguments, got None"),
        (b'{"request": 4}', "expected a command with its arguments, got 4"),
        (b'{"request": {}}', "unknown command None: expected one of"),
        (b'{"request": {"command": ["x"]}}', "unknown command a list: expected one of"),
        (b'{"request": {"command": "halt"}}', "unknown command 'halt': expected one of"),
        (b'{"request": {"command": "limit", "limit": -1}}', "a number from 1 to 10000, got -1"),
        (b'{"request": {"command": "limit", "limit": 1000000000}}', "from 1 to 10000, got 10000"),
        (b'{"request": {"command": "limit", "limit": 1e999}}', "from 1 to 10000, got inf"),
        (b'{"request": {"command": "status", "using": ["x"]}}', "no pool is configured as 'x'"),
        (b'{"request": {"command": "status", "using": "default"}}', "using: expected names"),
        (b'{"request": {"command": "ping", "timeout": NaN}}', "timeout must be a number"),
        (b'{"request": {"command": "suspend", "mode": "x"}}', "mode: expected wait or fail"),
    ],
    ids=str,
)
def test_a_request_that_is_not_a_command_is_refused(
    base: Base, sent: bytes, error: str | None
) -> None:
    pools, control = base.serve()
    with proven(base, control) as stream:
        stream.send_bytes(sent)
        if error is None:
            assert hung_up(stream)
        else:
            answer = stream.receive(protocol.LARGEST_ANSWER)["answer"]
            assert answer["outcome"] == "failed"
            assert error in answer["error"]
            assert "\n" not in answer["error"]
    assert pools.connections["default"].limit == 10
    assert works(control)


def test_messages_of_a_newer_version_are_understood(base: Base) -> None:
    _, control = base.serve()
    with proven(base, control) as stream:
        stream.send({"request": {"command": "status", "colour": "blue"}, "more": 1})
        assert stream.receive(protocol.LARGEST_ANSWER)["answer"]["outcome"] == "done"


@needs_root
@pytest.mark.forks
@pytest.mark.threads
def test_another_user_that_reaches_the_socket_is_refused(
    base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    _, control = base.serve()
    [path] = base.sockets()
    # Somebody has opened it to everybody.
    for one in (path, path.parent, path.parent.parent, base.path):
        one.chmod(0o777)
    pid = os.fork()
    if not pid:  # pragma: no cover - the child, which leaves without a word
        code = 1
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(PATIENCE)
                sock.connect(str(path))
                code = 0 if sock.recv(1) == b"" else 2
        except ConnectionError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    until(lambda: f"it is a process of user {NOBODY}" in caplog.text)
    # And nobody is asked through a directory that others can use.
    answers = control.ask("status", timeout=PATIENCE)
    assert answers.answers == ()
    assert "is open to others (mode 777); chmod 700 it" in answers.problems[0]


@pytest.mark.threads
def test_a_caller_is_disconnected_if_no_thread_can_be_started(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, control = base.serve()
    monkeypatch.setattr(server, "spawn_thread", lambda work, name: False)
    with caller(base) as stream:
        assert hung_up(stream)
    monkeypatch.undo()
    assert works(control)


# -- those who answer --------------------------------------------------------------------------------------------------


class Impostor:
    """A socket in the project's directory that an impostor answers.

    :param answer: is called with each caller.
    """

    def __init__(
        self,
        base: Base,
        control: Control,
        answer: Callable[[protocol.Stream], None],
        pid: int = 4711,
    ) -> None:
        where = SocketDir(str(base.path), control.project)
        where.make()
        self.name = where.name_for(pid, "0a1b2c3d")
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(self.name.path)
        self._sock.listen()
        self._answer = answer
        self._over = False
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            sock, _ = self._sock.accept()
            if self._over:
                sock.close()
                return
            stream = protocol.Stream(sock, time.monotonic() + PATIENCE)
            with contextlib.suppress(OSError, EOFError, ControlError):
                self._answer(stream)
            stream.close()

    def __enter__(self) -> Impostor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        with socket.socket(socket.AF_UNIX) as bell:
            bell.connect(self.name.path)
        self._thread.join()
        self._sock.close()


def with_the_key(control: Control, *messages: bytes) -> Callable[[protocol.Stream], None]:
    """Return an impostor that authenticates, and sends these messages."""

    def answer(stream: protocol.Stream) -> None:
        protocol.authenticate(stream, key_of(control), is_client=False)
        for message in messages:
            stream.send_bytes(message)
        stream.recv_bytes(protocol.LARGEST_REQUEST)

    return answer


HELLO = b'{"process": {"name": "a:1:b", "host": "a", "pid": 1}}'


def no_key(stream: protocol.Stream) -> None:
    protocol.authenticate(stream, b"k" * 32, is_client=False)


def wants_more(stream: protocol.Stream) -> None:
    stream.sock.sendall(struct.pack("!i", 2**31 - 1) + b"x" * 100)
    hung_up(stream)


@pytest.mark.parametrize("answer", [no_key, garbage, wants_more], ids=lambda one: one.__name__)
def test_a_peer_that_answers_without_the_key_is_reported(
    base: Base, answer: Callable[[protocol.Stream], None]
) -> None:
    control = base.control()
    with Child(base.path) as child, Impostor(base, control, answer) as impostor:
        answers = control.ask("reset", timeout=PATIENCE)
        by_pid = {one.process.pid: one for one in answers.answers}
        assert by_pid[child.pid].outcome == "done"
        assert by_pid[4711].outcome == "failed"
        assert "its socket is answered by a stranger" in str(by_pid[4711].error)
        assert Path(impostor.name.path).exists()


@pytest.mark.parametrize(
    "messages, error",
    [
        ([b"x"], "stranger: it sends what is not valid JSON"),
        ([b" " * 10_000], "stranger: it sends a message of 10000 bytes"),
        ([b"[]"], "it does not say which process it is"),
        ([b"null"], "it does not say which process it is"),
        ([b'["x"]'], "its answer is not valid"),
        ([b'{"process": {"name": "a", "host": 1, "pid": "x"}}'], "which process it is"),
        ([b'{"process": {"name": "a", "host": "a", "pid": true}}'], "which process it is"),
        ([HELLO, b"x"], "stranger: it sends what is not valid JSON"),
    ],
    ids=str,
)
def test_a_wrong_answer_is_reported(base: Base, messages: list[bytes], error: str) -> None:
    control = base.control()
    with Impostor(base, control, with_the_key(control, *messages)):
        [answer] = control.ask("status", timeout=PATIENCE).answers
    assert answer.outcome == "failed"
    assert error in str(answer.error)


@pytest.mark.parametrize(
    "message",
    [
        b"[]",
        b"7",
        b'{"answer": 1}',
        b'{"answer": {"outcome": "x"}}',
        b'{"answer": {"outcome": []}}',
        b'{"answer": {"outcome": "done", "rows": 1}}',
        b'{"answer": {"outcome": "done", "rows": [1]}}',
        b'{"answer": {"outcome": "done", "error": 1}}',
    ],
    ids=str,
)
def test_a_damaged_answer_counts_as_silence(base: Base, message: bytes) -> None:
    control = base.control()
    with Impostor(base, control, with_the_key(control, HELLO, message)):
        [answer] = control.ask("status", timeout=PATIENCE).answers
    assert answer.outcome == "silent"


def test_a_peer_that_never_sends_a_byte_is_silent(base: Base) -> None:
    control = base.control()
    waiting = threading.Event()
    with Impostor(base, control, lambda stream: waiting.wait(PATIENCE) and None):
        [answer] = control.ask("status", timeout=0.5).answers
        waiting.set()
    assert (answer.outcome, answer.error) == ("silent", "no answer within 0.5 s")


def test_a_queue_that_is_full_is_waited_for(base: Base) -> None:
    control = base.control()
    where = SocketDir(str(base.path), control.project)
    where.make()
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(where.name_for(4711, "0a1b2c3d").path)
        sock.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                other = stack.enter_context(socket.socket(socket.AF_UNIX))
                other.setblocking(False)
                other.connect(where.name_for(4711, "0a1b2c3d").path)
        [answer] = control.ask("status", timeout=0.5).answers
    assert answer.outcome == "silent"


@pytest.mark.forks
@pytest.mark.threads
def test_a_socket_kept_open_by_a_child_of_a_dead_process_is_no_process(base: Base) -> None:
    """A child has it open if the fork came in the moment before the socket was registered."""
    control = base.control()
    where = SocketDir(str(base.path), control.project)
    where.make()
    ready, said = os.pipe()
    parent = os.fork()
    if not parent:  # pragma: no cover - it is killed
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(where.name_for(os.getpid(), "0a1b2c3d").path)
        sock.listen()
        child = os.fork()
        if child:
            os.write(said, f"{child}\n".encode())
        signal.pause()
        os._exit(0)
    os.close(said)
    with open(ready) as pipe:
        child = int(pipe.readline())
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert len(base.sockets()) == 1
        assert control.ask("status", timeout=PATIENCE).answers == ()
        assert base.sockets() == []
        os.kill(child, signal.SIGKILL)


# -- the directory -----------------------------------------------------------------------------------------------------


def a_link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir(0o700)
    path.symlink_to(path.parent / "elsewhere")


def a_file(path: Path) -> None:
    path.write_text("mine")


def open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def readable(path: Path) -> None:
    path.mkdir()
    path.chmod(0o750)


def anothers(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be another user")
    path.mkdir(0o700)
    os.chown(path, NOBODY, NOBODY)


@pytest.mark.parametrize(
    "make, words",
    [
        (a_link, "is a symbolic link; remove it"),
        (a_file, "is not a directory; remove it"),
        (open_to_all, "is open to others (mode 777); chmod 700 it"),
        (readable, "is open to others (mode 750); chmod 700 it"),
        (anothers, f"belongs to user {NOBODY}, but this process runs as user {os.geteuid()}"),
    ],
    ids=["link", "file", "open", "readable", "anothers"],
)
@pytest.mark.parametrize("level", ["user", "project"])
def test_a_directory_that_is_not_safe_is_not_used(
    base: Base,
    make: Callable[[Path], None],
    words: str,
    level: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pools, control = base.attach()
    path = base.path / f"kombu-pools-{os.geteuid()}"
    if level == "project":
        path.mkdir(0o700)
        path = path / control.project.name
    make(path)
    with pytest.raises(ControlError, match="^" + ".*") as caught:
        serve(control.project)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    # With its pools in use the process says so once, and goes on.
    for _ in range(3):
        pools.connections["default"].acquire().release()
        pools.reset()
    until(lambda: words in caplog.text)
    assert len(caplog.records) == 1
    answers = control.ask("status")
    assert words in answers.problems[0]
    assert not answers.ok
    with pytest.raises(ControlError):
        control.who()
    assert base.sockets() == []


def test_a_base_in_which_others_may_replace_things_is_not_used(base: Base) -> None:
    _, control = base.attach()
    base.path.chmod(0o777)
    with pytest.raises(ControlError, match=r"others may replace what is in it \(mode 777\)"):
        serve(control.project)
    base.path.chmod(0o1777)
    assert serve(control.project)
    base.path.chmod(0o777)
    assert "others may replace" in control.ask("status").problems[0]
    base.path.chmod(0o1777)


def of_another(base: Base) -> Path:
    path = base.path / "b"
    path.mkdir(0o755)
    os.chown(path, NOBODY, NOBODY)
    return path


def of_another_and_sticky(base: Base) -> Path:
    path = of_another(base)
    path.chmod(0o1777)
    return path


def behind_a_link_of_another(base: Base) -> Path:
    (base.path / "d").mkdir(0o700)
    path = base.path / "b"
    path.symlink_to("d")
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return path


def below_a_link_of_another(base: Base) -> Path:
    path = behind_a_link_of_another(base)
    (path / "e").mkdir(0o700)
    return path / "e"


@needs_root
@pytest.mark.parametrize(
    "make, what",
    [
        (of_another, "the directory"),
        (of_another_and_sticky, "the directory"),
        (behind_a_link_of_another, "the symbolic link"),
        (below_a_link_of_another, "the symbolic link"),
    ],
)
def test_a_base_that_another_user_may_replace_is_not_used(
    base: Base, make: Callable[[Base], Path], what: str
) -> None:
    path = make(base)
    _, control = base.attach(directory=path)
    words = f"{what} {base.path / 'b'} is not safe: it belongs to user {NOBODY}"
    with pytest.raises(ControlError, match=re.escape(words)):
        serve(control.project)
    # Nor is what somebody has put there looked at.
    os.chown(base.path / "b", 0, 0, follow_symlinks=False)
    (base.path / "b").chmod(0o755)
    assert serve(control.project)
    assert control.ask("status", timeout=PATIENCE).ok
    os.chown(base.path / "b", NOBODY, NOBODY, follow_symlinks=False)
    answers = control.ask("status")
    assert answers.answers == ()
    assert words in answers.problems[0]


def test_a_link_of_our_own_is_followed(base: Base) -> None:
    (base.path / "d").mkdir(0o700)
    (base.path / "b").symlink_to("d")
    _, control = base.attach(directory=base.path / "b")
    assert serve(control.project)
    assert control.ask("status", timeout=PATIENCE).ok


@pytest.mark.parametrize("what", ["missing", "file"])
def test_a_base_that_is_not_a_directory_is_refused(base: Base, what: str) -> None:
    path = base.path / "base"
    if what == "file":
        path.touch()
    _, control = base.attach(directory=path)
    words = "No such file or directory; make it" if what == "missing" else "is not a directory"
    with pytest.raises(ControlError, match=words):
        serve(control.project)
    assert control.ask("status").answers == ()


def test_a_path_that_is_too_long_for_a_socket(base: Base, caplog: pytest.LogCaptureFixture) -> None:
    path = base.path / ("d" * 60)
    path.mkdir()
    pools, control = base.attach(directory=path)
    pools.connections["default"].acquire().release()
    until(lambda: "and the system takes 107; set DIRECTORY to a shorter one" in caplog.text)
    with pytest.raises(ControlError, match="a shorter one"):
        serve(control.project)
    assert control.ask("status").answers == ()


def test_a_foreign_file_is_left_alone_and_logged_once(
    base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    _, control = base.serve()
    tags = f"{socket_dir.kernel_tag()}-{socket_dir.host_tag()}"
    (base.project / "notes.txt").write_text("mine")
    (base.project / f"1-{tags}-00000000").write_text("mine")
    os.mkfifo(base.project / f"2-{tags}-00000000")
    (base.project / f"3-{tags}-00000000").symlink_to("notes.txt")
    (base.project / ".hidden").write_text("mine")
    before = base.files()
    assert works(control)
    assert works(control)
    assert base.files() == before
    said = [one.getMessage() for one in caplog.records]
    assert len(said) == 4
    assert all("is not a socket of a process of ours: it is left alone" in one for one in said)


def a_dead_socket(name: SocketName) -> Path:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(name.path)
    return Path(name.path)


def test_sockets_are_removed_if_their_process_is_certainly_dead(base: Base) -> None:
    """A directory may be shared with containers, or over a network with other machines."""
    _, control = base.serve()
    kernel, host = socket_dir.kernel_tag(), socket_dir.host_tag()
    directory = str(base.project)

    def dead(kernel: str, host: str, number: int) -> Path:
        file = f"{number}-{kernel}-{host}-00000000"
        name = SocketName.parse(directory, file)
        assert name is not None
        return a_dead_socket(name)

    container = dead(kernel, "0000aa", 1)
    before_a_reboot = dead("0000bb", host, 2)
    other_machine = dead("0000bb", "0000aa", 3)
    assert works(control)
    assert not container.exists()
    assert not before_a_reboot.exists()
    assert other_machine.exists()


def test_abandoned_hidden_files_are_removed_later(base: Base) -> None:
    _, control = base.serve()
    where = SocketDir(str(base.path), control.project)
    name = where.name_for(1, "00000000")
    hidden = SocketName.parse(name.directory, f".{name.file}")
    assert hidden is not None
    half = a_dead_socket(hidden)
    key = base.project / ".key-0000"
    key.write_bytes(b"half")
    assert works(control)
    assert half.exists()
    long_ago = time.time() - 2 * socket_dir.ABANDONED_AFTER
    for path in (half, key):
        os.utime(path, (long_ago, long_ago))
    assert works(control)
    assert not half.exists()
    assert not key.exists()


@needs_root
@pytest.mark.slow
def test_containers_that_share_a_directory_but_not_pids(base: Base) -> None:
    """Both have their own namespaces and the same process number, and neither removes the socket of the other."""
    unshare = shutil.which("unshare")
    wrap = [unshare or "unshare", "--pid", "--fork", "--kill-child", "--uts"]
    if unshare is None or subprocess.run([*wrap, "true"], capture_output=True).returncode:
        pytest.skip("namespaces are not permitted here")
    program = f"""
import os, socket, sys
sys.argv[1:] = [{str(base.path)!r}, {SECRET!r}, "memory://x"]
socket.sethostname(sys.stdin.readline().strip())
"""
    rest = (
        "import kombu_pools_ext\n"
        "print(os.getpid(), flush=True)\n"
        "sys.stdin.readline()\n"
        f"answers = control.ask('status', timeout={PATIENCE})\n"
        "print(sorted(answer.process.host for answer in answers.answers), answers.ok, flush=True)\n"
        "sys.stdin.read()\n"
    )
    from tests.control.rig import CHILD

    control = base.control()
    with contextlib.ExitStack() as stack:
        containers = []
        for host in ("alpha", "beta"):
            one = stack.enter_context(
                subprocess.Popen(
                    [*wrap, sys.executable, "-c", program + CHILD + rest],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(one.kill)
            assert one.stdin is not None
            assert one.stdout is not None
            one.stdin.write(f"{host}\n")
            one.stdin.flush()
            assert one.stdout.readline() == "ready\n"
            assert one.stdout.readline() == "1\n"
            containers.append((one, one.stdin, one.stdout))
        answers = control.ask("status", timeout=PATIENCE)
        assert [(one.process.host, one.process.pid) for one in answers.answers] == [
            ("alpha", 1),
            ("beta", 1),
        ]
        for _, write, read in containers:
            write.write("\n")
            write.flush()
            assert read.readline() == "['alpha', 'beta'] True\n"
        assert len(base.sockets()) == 2
        # The one process of alpha is killed, from outside.
        containers[0][0].kill()
        containers[0][0].wait()
        until(lambda: len(control.ask("status", timeout=PATIENCE).answers) == 1)
        assert len(base.sockets()) == 1


# -- disks -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """Mount a small file system at *path*."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def told(base: Base, path: Path, secret: str | None, caplog: pytest.LogCaptureFixture) -> str:
    """Return what a process logs whose pools are used, with its sockets in *path*. Its pools go on to work."""
    pools, control = base.attach(secret, directory=path)
    with pytest.raises(ControlError):
        serve(control.project)
    pools.connections["default"].acquire().release()
    until(lambda: caplog.records)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert control.ask("status").answers == ()
    return record.getMessage()


@pytest.mark.parametrize("inodes, what", [(1, "directory"), (2, "directory"), (3, "socket")])
def test_a_full_disk(base: Base, inodes: int, what: str, caplog: pytest.LogCaptureFixture) -> None:
    with mounted(base.path / "full", f"size=64k,nr_inodes={inodes},mode=755") as path:
        words = told(base, path, SECRET, caplog)
    assert f"cannot make {'a socket in' if what == 'socket' else 'the directory'} " in words
    assert "No space left on device" in words


def test_a_full_disk_without_room_for_a_key(base: Base, caplog: pytest.LogCaptureFixture) -> None:
    with mounted(base.path / "full", "size=64k,nr_inodes=3,mode=755") as path:
        words = told(base, path, None, caplog)
    assert "cannot make the key " in words
    assert "No space left on device; make room, set KEY" in words


def test_a_disk_that_cannot_be_written(base: Base, caplog: pytest.LogCaptureFixture) -> None:
    with mounted(base.path / "fixed", "size=64k,ro,mode=755") as path:
        words = told(base, path, SECRET, caplog)
    assert "cannot make the directory " in words
    assert "Read-only file system; set DIRECTORY to one that can be written to" in words


def test_commands_work_on_a_directory_that_has_become_read_only(base: Base) -> None:
    with mounted(base.path / "fixed", "size=64k,mode=755") as path:
        with Child(path):
            subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
            _, control = base.attach(directory=path)
            assert works(control)
        # It could not take its socket with it.
        answers = control.ask("status", timeout=PATIENCE)
        assert (answers.answers, answers.ok) == ((), True)


# -- without a secret --------------------------------------------------------------------------------------------------


def test_without_a_secret_the_key_is_a_file_for_this_user_alone(base: Base) -> None:
    control = base.control(None)
    with Child(base.path, "") as first, Child(base.path, "") as second:
        key = base.project / "key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert len(key.read_bytes()) == socket_dir.KEY_SIZE
        answers = control.ask("status", timeout=PATIENCE)
        assert {one.process.pid for one in answers.answers} == {first.pid, second.pid}
        # Who tidies up takes the key away: a process that is asked next makes another one.
        key.unlink()
        answers = control.ask("status", timeout=PATIENCE)
        assert "is missing" in answers.problems[0]
        with contextlib.suppress(EOFError, ConnectionError), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(base.sockets()[0]))
            protocol.Stream(sock, time.monotonic() + PATIENCE).recv_bytes(256)
        assert control.ask("status", timeout=PATIENCE).ok


def test_two_processes_that_make_a_key_at_once_have_the_same(base: Base) -> None:
    control = base.control(None)
    where = SocketDir(str(base.path), control.project)
    where.make()
    keys: list[bytes | None] = []
    together = threading.Barrier(8)

    def make() -> None:
        together.wait(PATIENCE)
        keys.append(where.key(make=True))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(PATIENCE)
    assert len(keys) == 8
    assert len(set(keys)) == 1
    assert base.files() == ["key"]


def damaged(path: Path) -> None:
    path.write_bytes(b"short")
    path.chmod(0o600)


def open_key(path: Path) -> None:
    path.write_bytes(b"k" * socket_dir.KEY_SIZE)
    path.chmod(0o644)


def linked_key(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def key_directory(path: Path) -> None:
    path.mkdir()


def key_fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    "make, words",
    [
        (damaged, "is damaged: it does not have 32 bytes"),
        (open_key, "is not safe: others may have it"),
        (linked_key, "cannot read the key"),
        (key_directory, "is not safe"),
        (key_fifo, "is not safe"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_damaged_or_unsafe_key_is_refused(
    base: Base, make: Callable[[Path], None], words: str
) -> None:
    _, control = base.attach(None)
    where = SocketDir(str(base.path), control.project)
    where.make()
    make(Path(where.path) / "key")
    with pytest.raises(ControlError, match=words):
        serve(control.project)
    a_dead_socket(where.name_for(1, "00000000"))
    assert words in control.ask("status").problems[0]


# -- the default place -------------------------------------------------------------------------------------------------


def test_the_default_directories(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, temporary = base.path / "run", base.path / "tmp"
    for path in (runtime, temporary):
        path.mkdir(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("TMPDIR", str(temporary))
    pools = Pools(default=memory())
    base.pools.append(pools)
    control = attach(pools, secret=SECRET)
    assert serve(control.project)
    assert [path.name for path in runtime.iterdir()] == [f"kombu-pools-{os.geteuid()}"]
    assert works(control)

    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert [one.base for one in socket_dir.dirs_to_listen_in(control.project)] == [str(temporary)]
    assert str(temporary) in [one.base for one in socket_dir.dirs_to_search(control.project)]
    monkeypatch.setenv("TMPDIR", str(base.path / "none"))
    assert [one.base for one in socket_dir.dirs_to_listen_in(control.project)] == ["/tmp"]


def test_a_shell_finds_a_service_that_has_no_runtime_directory(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, temporary = base.path / "run", base.path / "tmp"
    for path in (runtime, temporary):
        path.mkdir(0o700)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(temporary))
    pools = Pools(default=memory())
    base.pools.append(pools)
    control = attach(pools, secret=SECRET)
    assert serve(control.project)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert works(control)


@needs_root
def test_the_second_default_where_the_first_cannot_be_written(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = base.path / "tmp"
    temporary.mkdir(0o700)
    with mounted(base.path / "run", "size=64k,ro,mode=700") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        monkeypatch.setenv("TMPDIR", str(temporary))
        pools = Pools(default=memory())
        base.pools.append(pools)
        control = attach(pools, secret=SECRET)
        assert serve(control.project)
        assert works(control)
        assert [path.name for path in temporary.iterdir()] == [f"kombu-pools-{os.geteuid()}"]


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_a_command_that_is_too_large_is_not_sent(base: Base) -> None:
    _, control = base.serve()
    answers = control.ask("status", using=[f"{number:0250}" for number in range(400)])
    assert "more than 65536: name fewer aliases at a time" in answers.problems[0]
    assert answers.answers == ()


def test_an_answer_that_is_too_large_is_reported(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, control = base.serve()
    monkeypatch.setattr(server, "LARGEST_ANSWER", 100)
    [answer] = control.ask("status", timeout=PATIENCE).answers
    assert answer.outcome == "failed"
    assert "more than 100; ask for fewer aliases at a time" in str(answer.error)


def test_the_python_versions_understand_each_other(base: Base) -> None:
    """Their challenges differ, because 3.11 supports only MD5."""
    others = [
        path
        for minor in (11, 12, 13)
        if minor != sys.version_info.minor
        for path in [shutil.which(f"python3.{minor}"), *map(str, _installed(minor))]
        if path
    ]
    others = [one for one in dict.fromkeys(others) if _runs(one)]
    # Ours first: an installed one may lie beside kombu.
    packages = [str(Path(one.__file__ or "").parent.parent) for one in (kombu_pools_ext, kombu)]
    if not others:
        pytest.skip("there is no other Python here")
    _, control = base.serve()
    program = (
        "import json, sys\n"
        "from kombu_pools_ext import Pools\n"
        "from kombu_pools_ext.control import attach, serve\n"
        "pools = Pools(default='memory://x')\n"
        f"control = attach(pools, {{'DIRECTORY': sys.argv[1]}}, secret={SECRET!r})\n"
        "assert serve(control.project)\n"
        f"print(len(control.ask('status', timeout={PATIENCE}).answers), flush=True)\n"
        "sys.stdin.read()\n"
    )
    for other in others:
        with subprocess.Popen(
            [other, "-c", program, str(base.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(packages),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "2\n"
                answers = control.ask("status", timeout=PATIENCE)
                assert answers.ok
                assert len(answers.answers) == 2
            finally:
                process.kill()


def _runs(python: str) -> bool:
    # pyenv has a program of each name, which runs the versions that were chosen alone.
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def _installed(minor: int) -> list[Path]:
    return sorted(Path("~/.pyenv/versions").expanduser().glob(f"3.{minor}.*/bin/python"))
