"""Find out why a command does not reach processes of this machine: they have another user, directory or key.

The kernel lists the listening sockets of all users with their paths, so no process has to be asked, and no private
directory has to be read. Sockets in containers with their own network are not in that list; they are found in the
directories that this user may read.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .project import Project
from .socket_dir import SocketName, dirs_to_search, host_tag, kernel_tag

__all__ = ["likely_reasons", "with_another_key"]

#: The kernel's list of the sockets of this network namespace, and the flag of a listening one.
_TABLE = Path("/proc/net/unix")
_LISTENS = 1 << 16
_USER = re.compile(r"kombu-pools-(\d{1,10})", re.ASCII)
_PROJECT = re.compile(r"[0-9a-f]{16}", re.ASCII)


@dataclass(frozen=True)
class _Listening:
    """A process that listens."""

    base: str
    user: int
    project: str
    #: Number, kernel and machine.
    identity: tuple[int, str, str]


def likely_reasons(project: Project) -> list[str]:
    """Return lines that say why a command does not reach processes of this machine; none if no such process is seen."""
    names = {one.name for one in project.with_former}
    others = [process for process in _all_listening(project) if not _is_found(process, project)]
    same = [process for process in others if process.project in names]
    if same:
        return [*_of_other_users(same, with_key=True), *_in_other_directories(same, project)]
    return [*_with_other_keys(others), *_of_other_users(others, with_key=False)]


def _of_other_users(others: Iterable[_Listening], *, with_key: bool) -> Iterator[str]:
    users = Counter(process.user for process in others if process.user != os.geteuid())
    for user, count in users.most_common():
        if with_key:
            yield f"{_count_of_user(count, _user_name(user))}: run it as that user"
        else:
            yield (
                f"{_count_of_user(count, _user_name(user))}, with another key: run it as that user, with the same "
                "secret"
            )


def _in_other_directories(others: Iterable[_Listening], project: Project) -> Iterator[str]:
    looked_at = {directory.base for directory in dirs_to_search(project)}
    bases = Counter(process.base for process in others if process.user == os.geteuid())
    for base, count in bases.most_common():
        if not _may_be_used(base):
            continue
        listen = "1 process listens" if count == 1 else f"{count} processes listen"
        if base in looked_at:
            yield (
                f"{listen} in another {base} than this one (PrivateTmp=, a container): set DIRECTORY to one that both "
                "see"
            )
        else:
            yield f"{listen} in {base}: set DIRECTORY to it"


def _may_be_used(base: str) -> bool:
    """Return whether to recommend *base* as DIRECTORY. Any user can bind a socket to a path that looks like ours."""
    try:
        return os.stat(base).st_uid in (os.geteuid(), 0)
    except OSError:
        # Only other processes can see this directory.
        return True


def _with_other_keys(others: Iterable[_Listening]) -> Iterator[str]:
    count = sum(process.user == os.geteuid() for process in others)
    if count:
        yield with_another_key(count)


def with_another_key(count: int, where: str = "") -> str:
    """Return the line about *count* processes that use another key."""
    use = "1 process uses" if count == 1 else f"{count} processes use"
    return f"{use} another key{where}: is the secret the same here?"


def _count_of_user(count: int, user: str) -> str:
    return (
        f"1 process of user {user!r} is there"
        if count == 1
        else f"{count} processes of user {user!r} are there"
    )


def _user_name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _is_found(process: _Listening, project: Project) -> bool:
    """Return whether a command of *project* finds this process."""
    if process.user != os.geteuid():
        return False
    for known in project.with_former:
        for directory in dirs_to_search(known):
            if (known.name, directory.base) == (process.project, process.base):
                found = (SocketName.parse(directory.path, file) for file in _names(directory.path))
                return any(
                    name is not None and _identity(name) == process.identity for name in found
                )
    return False


def _identity(socket: SocketName) -> tuple[int, str, str]:
    return socket.pid, socket.kernel, socket.host


def _all_listening(project: Project) -> set[_Listening]:
    """Return all processes that listen, of all users and projects."""
    listed = _listed()
    found = set(listed or ())
    for directory in dirs_to_search(project):
        for process in _in_directories(directory.base):
            number, kernel, host = process.identity
            if (kernel, host) != (kernel_tag(), host_tag()):
                found.add(process)
            elif listed is None and _is_alive(number):
                # Only without the kernel's list, which has all living processes of this machine.
                found.add(process)
    return found


def _is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _listed() -> list[_Listening] | None:
    """Return the processes in the kernel's list; ``None`` if the system has no such list."""
    try:
        lines = _TABLE.read_text("utf-8", "surrogateescape").splitlines()[1:]
    except OSError:
        return None
    found: list[_Listening] = []
    for line in lines:
        # Num, RefCount, Protocol, Flags, Type, St, Inode, Path
        fields = line.split(None, 7)
        with contextlib.suppress(ValueError, IndexError):
            if int(fields[3], 16) & _LISTENS:
                found += _parsed(fields[7])
    return found


def _parsed(path: str) -> Iterator[_Listening]:
    """Yield the process that listens at *path*, if the path is one that this library makes."""
    directory, file = os.path.split(path)
    above, project = os.path.split(directory)
    base, owner = os.path.split(above)
    user, socket = _USER.fullmatch(owner), SocketName.parse(directory, file)
    if user is not None and socket is not None and _PROJECT.fullmatch(project):
        yield _Listening(base, int(user[1]), project, _identity(socket))


def _in_directories(base: str) -> Iterator[_Listening]:
    """Yield the processes with a socket below *base*, in the directories that can be read."""
    for owner in _names(base):
        if _USER.fullmatch(owner):
            for project in _names(os.path.join(base, owner)):
                for file in _names(os.path.join(base, owner, project)):
                    if not file.startswith("."):
                        yield from _parsed(os.path.join(base, owner, project, file))


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
