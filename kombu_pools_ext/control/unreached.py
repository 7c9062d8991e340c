"""Find the processes of this machine that a command does not reach: their user, directory and key.

The kernel lists the listening sockets of all users with the paths to which they were bound, so no process has to be
asked, and no private directory read. Sockets of containers with a network of their own are not in that list; these are
found in the directories that this user may read.
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

from .place import Socket, host_tag, kernel_tag, places_to_look
from .project import Project

__all__ = ["likely_reasons"]

#: The kernel's list of the sockets of this network namespace, and the flag of a listening one.
_TABLE = Path("/proc/net/unix")
_LISTENS = 1 << 16
_USER = re.compile(r"kombu-pools-(\d{1,10})", re.ASCII)
_PROJECT = re.compile(r"[0-9a-f]{16}", re.ASCII)


@dataclass(frozen=True)
class _Unreached:
    """One process that listens."""

    base: str
    user: int
    project: str
    #: Number, kernel and machine.
    process: tuple[int, str, str]


def likely_reasons(project: Project) -> list[str]:
    """Return lines that say why a command may not reach processes of this machine; none if no such process is seen."""
    names = {one.name for one in project.with_former}
    others = [one for one in _everyone(project) if not _is_found(one, project)]
    same = [one for one in others if one.project in names]
    if same:
        return [*_of_users(same, with_key=True), *_of_places(same, project)]
    return [*_of_keys(others), *_of_users(others, with_key=False)]


def _of_users(others: Iterable[_Unreached], *, with_key: bool) -> Iterator[str]:
    users = Counter(one.user for one in others if one.user != os.geteuid())
    for user, count in users.most_common():
        if with_key:
            yield f"{_are_there(count, _name(user))}: run it as that user"
        else:
            yield f"{_are_there(count, _name(user))}, with another key: run it as that user, with the same secret"


def _of_places(others: Iterable[_Unreached], project: Project) -> Iterator[str]:
    looked_at = {place.base for place in places_to_look(project)}
    bases = Counter(one.base for one in others if one.user == os.geteuid())
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
    """Whether *base* may be recommended as DIRECTORY: anybody can bind a socket to a path that looks like ours."""
    try:
        return os.stat(base).st_uid in (os.geteuid(), 0)
    except OSError:
        # Only other processes can see this directory.
        return True


def _of_keys(others: Iterable[_Unreached]) -> Iterator[str]:
    count = sum(one.user == os.geteuid() for one in others)
    if count:
        use = "1 process uses" if count == 1 else f"{count} processes use"
        yield f"{use} another key: is the secret the same here?"


def _are_there(count: int, user: str) -> str:
    return (
        f"1 process of user {user!r} is there"
        if count == 1
        else f"{count} processes of user {user!r} are there"
    )


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _is_found(one: _Unreached, project: Project) -> bool:
    """Whether a command of *project* finds this process."""
    if one.user != os.geteuid():
        return False
    for known in project.with_former:
        for place in places_to_look(known):
            if (known.name, place.base) == (one.project, one.base):
                found = (Socket.parse(place.path, file) for file in _names(place.path))
                return any(it is not None and _process(it) == one.process for it in found)
    return False


def _process(socket: Socket) -> tuple[int, str, str]:
    return socket.pid, socket.kernel, socket.host


def _everyone(project: Project) -> set[_Unreached]:
    """Return all processes that listen, of any user and project."""
    listed = _listed()
    found = set(listed or ())
    for place in places_to_look(project):
        for one in _in_directories(place.base):
            number, kernel, host = one.process
            if (kernel, host) != (kernel_tag(), host_tag()):
                found.add(one)
            elif listed is None and _is_alive(number):
                # With the kernel's list, all living processes of this machine are known already.
                found.add(one)
    return found


def _is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _listed() -> list[_Unreached] | None:
    """Return the processes in the kernel's list; ``None`` if there is no list."""
    try:
        lines = _TABLE.read_text("utf-8", "surrogateescape").splitlines()[1:]
    except OSError:
        return None
    found: list[_Unreached] = []
    for line in lines:
        # Num, RefCount, Protocol, Flags, Type, St, Inode, Path
        fields = line.split(None, 7)
        with contextlib.suppress(ValueError, IndexError):
            if int(fields[3], 16) & _LISTENS:
                found += _parsed(fields[7])
    return found


def _parsed(path: str) -> Iterator[_Unreached]:
    """Return the process that listens at *path*, if the path is one of this library."""
    directory, file = os.path.split(path)
    above, project = os.path.split(directory)
    base, owner = os.path.split(above)
    user, socket = _USER.fullmatch(owner), Socket.parse(directory, file)
    if user is not None and socket is not None and _PROJECT.fullmatch(project):
        yield _Unreached(base, int(user[1]), project, _process(socket))


def _in_directories(base: str) -> Iterator[_Unreached]:
    """Return the processes with a socket below *base*, in the directories that can be read."""
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
