"""A command that finds no process says where processes are: of another user, with another key, in another directory."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kombu_pools_ext.control import Control, ControlSettings, Project, diagnosis
from tests.control.rig import CHILD, NOBODY, SECRET, WAIT, Base, Child, memory, needs_root
from tests.worker import ready

Reasons = Callable[..., list[str]]


@pytest.fixture(params=["the kernel's list", "directories"])
def reasons(
    request: pytest.FixtureRequest, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Reasons:
    """Return what is said about the processes of this test, because others run on the same machine."""
    table = tmp_path / "unix"
    monkeypatch.setattr(diagnosis, "_TABLE", table)

    def found(secret: str = SECRET, directory: Path | None = None) -> list[str]:
        if request.param == "the kernel's list":
            head, *lines = Path("/proc/net/unix").read_text("utf-8").splitlines()
            table.write_text("\n".join([head, *(one for one in lines if str(base.path) in one)]))
        settings = ControlSettings(directory=str(directory or base.path))
        return Control(Project(settings, secret, "test")).likely_reasons()

    found.by = request.param  # type: ignore[attr-defined]
    return found


def test_a_process_that_a_command_finds_is_not_reported_as_missing(
    base: Base, reasons: Reasons
) -> None:
    assert reasons() == []
    with Child(base.path):
        assert reasons() == []


def test_processes_with_another_key(base: Base, reasons: Reasons) -> None:
    with Child(base.path, SECRET + "!"):
        assert reasons() == ["1 process uses another key: is the secret the same here?"]
        with Child(base.path, SECRET + "?"):
            assert reasons() == ["2 processes use another key: is the secret the same here?"]
            # Where some of one's own are found, the others are not the reason for those that are missing.
            assert reasons(SECRET + "!") == [
                "1 process uses another key: is the secret the same here?"
            ]
    assert reasons() == []


@needs_root
def test_processes_of_another_user(base: Base, reasons: Reasons) -> None:
    base.path.chmod(0o1777)
    with _of_nobody(base.path, SECRET), _of_nobody(base.path, SECRET), Child(base.path, "x" * 20):
        assert reasons() == ["2 processes of user 'nobody' are there: run it as that user"]
        assert reasons(SECRET + "!") == [
            "1 process uses another key: is the secret the same here?",
            "2 processes of user 'nobody' are there, with another key: run it as that user, with the same secret",
        ]


@contextlib.contextmanager
def _of_nobody(base: Path, secret: str) -> Iterator[None]:
    # What root has installed may be in a directory that it keeps to itself.
    loaded = "import codecs, os\ncodecs.lookup('ascii'), codecs.lookup('idna')\n"
    demoted = loaded + CHILD.replace("directory,", f"os.setuid({NOBODY}); directory,", 1) + WAIT
    with ready("-c", demoted, str(base), secret, memory()):
        yield


def test_processes_that_listen_in_another_directory(base: Base, reasons: Reasons) -> None:
    elsewhere = base.path / "e"
    elsewhere.mkdir(0o700)
    with Child(elsewhere):
        found = reasons()
        if reasons.by == "directories":  # type: ignore[attr-defined]
            # Nobody knows where to look.
            assert found == []
        else:
            assert found == [f"1 process listens in {elsewhere}: set DIRECTORY to it"]


def test_processes_that_see_another_directory_at_the_same_path(
    base: Base, reasons: Reasons
) -> None:
    """As for a service with PrivateTmp."""
    shared = base.path / "s"
    shared.mkdir(0o700)
    with Child(shared):
        shared.rename(base.path / "hidden")
        shared.mkdir(0o700)
        found = reasons(directory=shared)
        if reasons.by == "directories":  # type: ignore[attr-defined]
            assert found == []
        else:
            [reason] = found
            assert re.match(
                f"1 process listens in another {shared} than this one .*PrivateTmp", reason
            )


def test_a_process_that_was_killed_is_not_listed(base: Base, reasons: Reasons) -> None:
    with Child(base.path, SECRET + "!") as child:
        child.kill()
    assert base.sockets() != []
    assert reasons() == []


def test_a_socket_that_is_not_ours_is_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "unix"
    monkeypatch.setattr(diagnosis, "_TABLE", table)
    ours = f"/x/kombu-pools-1/{'a' * 16}/.4711-{'b' * 6}-{'c' * 6}-{'d' * 8}"
    flags = "0000000000000000: 00000002 00000000"
    lines = [
        "Num       RefCount Protocol Flags    Type St Inode Path",
        f"{flags} 00010000 0001 01 4242 {ours}",
        f"{flags} 00000000 0001 03 4243 {ours.replace('4711', '4712')}",
        f"{flags} 00010000 0001 01 4244 {ours.replace('kombu', 'kumbo')}",
        f"{flags} 00010000 0001 01 4245 {ours.replace('.4711', 'key')}",
        f"{flags} 00010000 0001 01 4246 @abstract",
        f"{flags} 00010000 0001 01 4247",
        "garbage",
        "",
    ]
    table.write_text("\n".join(lines))
    found = diagnosis._listed()
    assert found is not None
    assert [(one.base, one.user, one.identity[0]) for one in found] == [("/x", 1, 4711)]


def test_the_kernels_list_shows_processes_with_another_key(base: Base) -> None:
    """The kernel's real list may contain other processes as well."""
    # Of nobody else on this machine.
    secret = secrets.token_hex()
    with Child(base.path, secret + "!"):
        found = base.control(secret).likely_reasons()
    assert any("another key" in one for one in found)


@needs_root
def test_a_directory_of_another_user_is_not_recommended(base: Base, reasons: Reasons) -> None:
    elsewhere = base.path / "e"
    elsewhere.mkdir(0o700)
    with Child(elsewhere):
        os.chown(elsewhere, NOBODY, NOBODY)
        assert reasons() == []
