"""Where the sockets of a project are on this machine: a directory that only this user can use, and the names in it.

::

    BASE/kombu-pools-UID/PROJECT/          both 0700, checked each time
        PID-KERNEL-HOST-RANDOM             the socket of a process
        .PID-KERNEL-HOST-RANDOM            one that does not listen yet
        key                                of a project without a secret, 0600
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import ControlError
from .project import Project

__all__ = [
    "LONGEST_PATH",
    "Place",
    "Socket",
    "host_tag",
    "kernel_tag",
    "places_to_listen",
    "places_to_look",
    "say_once",
]

logger = logging.getLogger("kombu_pools_ext.control")

#: Bytes of a socket's path: of the 108 of ``sun_path`` the last is 0. (104 on BSD and macOS: the kernel tells.)
LONGEST_PATH = 107
#: Bytes of the key of a project without a secret.
KEY_SIZE = 32
#: Seconds after which what is hidden was left behind by somebody who was killed in the middle.
ABANDONED_AFTER = 60.0
KEY = "key"

_NAME = re.compile(r"(\d{1,10})-([0-9a-f]{6})-([0-9a-f]{6})-([0-9a-f]{8})", re.ASCII)
#: What was logged already.
_said: set[str] = set()


def _tag(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:6]


@cache
def kernel_tag() -> str:
    """What tells this boot of this machine from all others: containers on one kernel share it."""
    try:
        return _tag(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip())
    except OSError:  # pragma: no cover - not Linux
        # There are no containers that might share a directory.
        return _tag(socket.gethostname())


def host_tag() -> str:
    """What tells this machine, or container, from others by its name."""
    return _tag(socket.gethostname())


@dataclass(frozen=True)
class Socket:
    """A socket's name, and what it tells of its process."""

    directory: str
    file: str
    pid: int
    kernel: str
    host: str
    random: str

    @classmethod
    def parse(cls, directory: str, file: str) -> Socket | None:
        """What *file* tells; ``None`` if it is no name of a socket."""
        found = _NAME.fullmatch(file.removeprefix("."))
        if found is None:
            return None
        pid, kernel, host, random = found.groups()
        return cls(directory, file, int(pid), kernel, host, random)

    @property
    def path(self) -> str:
        """Its whole path."""
        return os.path.join(self.directory, self.file)

    @property
    def is_ours_to_judge(self) -> bool:
        """Whether one that refuses connections is dead: its process ran under this kernel, or before a reboot.

        A directory may be shared with another machine, whose sockets refuse whoever is not there.
        """
        return self.kernel == kernel_tag() or self.host == host_tag()

    def remove(self) -> None:
        """Unlink it, if it is still a socket of ours."""
        with suppress(OSError):
            found = os.lstat(self.path)
            if stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid():
                os.unlink(self.path)
                # Was it the last one?
                os.rmdir(self.directory)
                os.rmdir(os.path.dirname(self.directory))


def places_to_listen(project: Project) -> list[Place]:
    """Where a process of *project* may put its socket: the first that can be used is it."""
    if project.settings.directory is not None:
        return [Place(project.settings.directory, project)]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    bases = [runtime] if _is_ours(runtime) else []
    return [Place(base, project) for base in (*bases, _temporary())]


def places_to_look(project: Project) -> list[Place]:
    """Where processes of *project* may be: a service has no ``XDG_RUNTIME_DIR``, and its user's shell has one."""
    if project.settings.directory is not None:
        return [Place(project.settings.directory, project)]
    here = [place.base for place in places_to_listen(project)]
    runtime = f"/run/user/{os.geteuid()}"
    others = [*([runtime] if _is_ours(runtime) else []), "/tmp"]
    return [Place(base, project) for base in dict.fromkeys([*here, *others])]


def _temporary() -> str:
    """Not ``tempfile``'s, which is another one when the disk is full."""
    named = os.environ.get("TMPDIR", "")
    return named if os.path.isabs(named) and os.path.isdir(named) else "/tmp"


def _is_ours(path: str) -> bool:
    if not os.path.isabs(path):
        return False
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


class Place:
    """The directory of a project below *base*."""

    def __init__(self, base: str, project: Project) -> None:
        self.base = base
        self._user = os.path.join(base, f"kombu-pools-{os.geteuid()}")
        #: Its path.
        self.path = os.path.join(self._user, project.name)
        self._project = project

    def make(self) -> None:
        """Make it, unless it is there.

        :raises ControlError: if it cannot be made, or is not safe to use.
        :raises FileNotFoundError: if somebody has removed it meanwhile.
        """
        self._check_base()
        for path in (self._user, self.path):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                pass
            except FileNotFoundError:
                raise
            except OSError as error:
                raise ControlError(
                    f"cannot make the directory {path}: {error.strerror}; set DIRECTORY to one that can be written to"
                ) from error
            _check_directory(path)

    def remove(self) -> None:
        """Remove it, if nothing is left in it."""
        with suppress(OSError):
            os.rmdir(self.path)
            os.rmdir(self._user)

    def exists(self) -> bool:
        """Whether it is there, and safe to use.

        :raises ControlError: if it is there, and not safe to use.
        """
        try:
            for path in (self._user, self.path):
                _check_directory(path)
        except FileNotFoundError:
            return False
        self._check_base()
        return True

    def _check_base(self) -> None:
        try:
            found = os.stat(self.base)
        except OSError as error:
            raise ControlError(
                f"the directory {self.base} cannot be used: {error.strerror}; make it, or set DIRECTORY to another"
            ) from error
        if not stat.S_ISDIR(found.st_mode):
            raise ControlError(f"{self.base} is no directory; set DIRECTORY to one")
        # The owner of a directory may replace what is in it, even with the sticky bit; the owner of a link decides
        # where it leads.
        _check_owner("the directory", self.base, found)
        for path in (*reversed(Path(self.base).parents), Path(self.base)):
            with suppress(OSError):
                link = os.lstat(path)
                if stat.S_ISLNK(link.st_mode):
                    _check_owner("the symbolic link", str(path), link)
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            raise ControlError(
                f"the directory {self.base} is not safe: others may replace what is in it (mode "
                f"{stat.S_IMODE(found.st_mode):o}); chmod go-w it, or set DIRECTORY to another"
            )

    # -- sockets -------------------------------------------------------------------------------------------

    def name_for(self, pid: int, random: str) -> Socket:
        """The name of the socket of process *pid*.

        :raises ControlError: if its path is too long for a socket.
        """
        parts = (str(pid), kernel_tag(), host_tag(), random)
        name = Socket(self.path, "-".join(parts), pid, *parts[1:])
        # One more for the dot of the hidden one.
        size = len(os.fsencode(name.path)) + 1
        if size > LONGEST_PATH:
            raise ControlError(
                f"the path of a socket in {self.path} would have {size} bytes, and the system takes {LONGEST_PATH}; "
                "set DIRECTORY to a shorter one"
            )
        return name

    def sockets(self) -> Iterator[Socket]:
        """What processes have put there, and may be listening on. Removes what was abandoned half made.

        :raises ControlError: if the directory is not safe to use, or cannot be read.
        """
        if not self.exists():
            return
        try:
            names = sorted(os.listdir(self.path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise ControlError(
                f"cannot read the directory {self.path}: {error.strerror}"
            ) from error
        for file in names:
            path = os.path.join(self.path, file)
            try:
                found = os.lstat(path)
            except OSError:
                # It went meanwhile.
                continue
            ours = found.st_uid == os.geteuid()
            if file.startswith("."):
                if ours and time.time() - found.st_mtime > ABANDONED_AFTER:
                    self._sweep(file, found.st_mode)
                continue
            name = Socket.parse(self.path, file)
            if name is not None and ours and stat.S_ISSOCK(found.st_mode):
                yield name
            elif file != KEY:
                say_once(f"{path} is no socket of a process of ours: it is left alone")

    def _sweep(self, file: str, mode: int) -> None:
        name = Socket.parse(self.path, file)
        half_made = name is not None and stat.S_ISSOCK(mode) and name.is_ours_to_judge
        if half_made or (file.startswith(f".{KEY}-") and stat.S_ISREG(mode)):
            with suppress(OSError):
                os.unlink(os.path.join(self.path, file))

    # -- the key -------------------------------------------------------------------------------------------

    def key(self, *, make: bool) -> bytes | None:
        """The secret of the project, or else the random one that is kept here.

        :param make: make the random one if there is none; else that is ``None``.
        :raises ControlError: if it cannot be made or read, or others might have read it.
        :raises FileNotFoundError: if there is no directory to make it in.
        """
        key = self._project.key("socket")
        if key is not None:
            return key
        path = os.path.join(self.path, KEY)
        key = _read_key(path)
        if key is None and make:
            self._make_key(path)
            key = _read_key(path)
        return key

    def _make_key(self, path: str) -> None:
        new = os.path.join(self.path, f".{KEY}-{secrets.token_hex(8)}")
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                with open(descriptor, "wb") as file:
                    file.write(secrets.token_bytes(KEY_SIZE))
                # Of two processes that make one at once, the second takes the first one's.
                with suppress(FileExistsError):
                    os.link(new, path)
            finally:
                os.unlink(new)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ControlError(
                f"cannot make the key {path}: {error.strerror}; make room, set KEY, or set DIRECTORY to another"
            ) from error


def _read_key(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ControlError(f"cannot read the key {path}: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ControlError(f"the key {path} is not safe: others may have it; remove it")
        key = os.read(descriptor, KEY_SIZE + 1)
    except OSError as error:
        raise ControlError(f"cannot read the key {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(key) != KEY_SIZE:
        raise ControlError(f"the key {path} is damaged: it has not {KEY_SIZE} bytes; remove it")
    return key


def _check_owner(what: str, path: str, found: os.stat_result) -> None:
    """:raises ControlError: unless *path* belongs to this user, or to root."""
    if found.st_uid not in (os.geteuid(), 0):
        raise ControlError(
            f"{what} {path} is not safe: it belongs to user {found.st_uid}, who may replace what is in it; set "
            "DIRECTORY to one that belongs to this user or root"
        )


def _check_directory(path: str) -> None:
    """:raises ControlError: unless *path* is a directory that nobody but this user can use."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        # It went meanwhile.
        raise
    except OSError as error:
        raise ControlError(f"the directory {path} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "no directory"
        raise ControlError(f"{path} is {what}; remove it, or set DIRECTORY to another")
    if found.st_uid != os.geteuid():
        raise ControlError(
            f"the directory {path} belongs to user {found.st_uid}, and not to {os.geteuid()}, who runs this process; "
            "remove it, or set DIRECTORY to another"
        )
    if found.st_mode & 0o077:
        raise ControlError(
            f"the directory {path} is open to others (mode {stat.S_IMODE(found.st_mode):o}); chmod 700 it"
        )


def say_once(words: str) -> None:
    """Log it, unless this process has done so before."""
    if words not in _said:
        _said.add(words)
        logger.warning("control: %s", words)
