"""The directory for the sockets of a project on this machine, and the names in it. Only this user can use it.

::

    BASE/kombu-pools-UID/PROJECT/          both mode 0700, checked before each use
        PID-KERNEL-HOST-RANDOM             the socket of a process
        .PID-KERNEL-HOST-RANDOM            a socket that does not listen yet
        key                                the key of a project without a secret, mode 0600
"""

from __future__ import annotations

import hashlib
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
from .log import warn_once
from .project import Project

__all__ = [
    "LONGEST_PATH",
    "SocketDir",
    "SocketName",
    "dirs_to_listen_in",
    "dirs_to_search",
    "host_tag",
    "kernel_tag",
]

#: The most bytes of a socket's path: ``sun_path`` has 108, and the last is 0. (104 on BSD and macOS; bind() fails.)
LONGEST_PATH = 107
#: Bytes of the key of a project without a secret.
KEY_SIZE = 32
#: A hidden file that is older, in seconds, was left behind by a process that was killed.
ABANDONED_AFTER = 60.0
KEY = "key"

_NAME = re.compile(r"(\d{1,10})-([0-9a-f]{6})-([0-9a-f]{6})-([0-9a-f]{8})", re.ASCII)


def _tag(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:6]


@cache
def kernel_tag() -> str:
    """Return six digits for this boot of this machine. Containers on one kernel have the same."""
    try:
        return _tag(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip())
    except OSError:  # pragma: no cover - not Linux
        # Other systems have no containers that could share a directory.
        return _tag(socket.gethostname())


def host_tag() -> str:
    """Return six digits for the name of this machine or container."""
    return _tag(socket.gethostname())


@dataclass(frozen=True)
class SocketName:
    """The file name of a socket, and the process that it names."""

    directory: str
    file: str
    pid: int
    kernel: str
    host: str
    random: str

    @classmethod
    def parse(cls, directory: str, file: str) -> SocketName | None:
        """Parse the name *file*; return ``None`` if it is not the name of a socket."""
        found = _NAME.fullmatch(file.removeprefix("."))
        if found is None:
            return None
        pid, kernel, host, random = found.groups()
        return cls(directory, file, int(pid), kernel, host, random)

    @property
    def path(self) -> str:
        """The path of the socket."""
        return os.path.join(self.directory, self.file)

    @property
    def may_be_judged(self) -> bool:
        """Whether a refused connection proves that the process is dead.

        This is so if the process ran on this kernel, or on this machine before a reboot. A directory may be shared with
        another machine, where sockets of living processes refuse connections from here.
        """
        return self.kernel == kernel_tag() or self.host == host_tag()

    def remove(self) -> None:
        """Unlink the file if it is a socket and belongs to this user."""
        with suppress(OSError):
            found = os.lstat(self.path)
            if stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid():
                os.unlink(self.path)
                # Succeeds only if it was the last file.
                os.rmdir(self.directory)
                os.rmdir(os.path.dirname(self.directory))


def dirs_to_listen_in(project: Project) -> list[SocketDir]:
    """Return where a process of *project* may make its socket. It uses the first directory that it can."""
    if project.settings.directory is not None:
        return [SocketDir(project.settings.directory, project)]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    bases = [runtime] if _belongs_to_us(runtime) else []
    return [SocketDir(base, project) for base in (*bases, _temporary())]


def dirs_to_search(project: Project) -> list[SocketDir]:
    """Return where processes of *project* may listen. Services have no ``XDG_RUNTIME_DIR``, but shells have one."""
    if project.settings.directory is not None:
        return [SocketDir(project.settings.directory, project)]
    here = [directory.base for directory in dirs_to_listen_in(project)]
    runtime = f"/run/user/{os.geteuid()}"
    others = [*([runtime] if _belongs_to_us(runtime) else []), "/tmp"]
    return [SocketDir(base, project) for base in dict.fromkeys([*here, *others])]


def _temporary() -> str:
    """Return the temporary directory. Not by ``tempfile``, which returns another one if the disk is full."""
    named = os.environ.get("TMPDIR", "")
    return named if os.path.isabs(named) and os.path.isdir(named) else "/tmp"


def _belongs_to_us(path: str) -> bool:
    if not os.path.isabs(path):
        return False
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


class SocketDir:
    """The directory of *project* below *base*."""

    def __init__(self, base: str, project: Project) -> None:
        self.base = base
        self._user = os.path.join(base, f"kombu-pools-{os.geteuid()}")
        #: The path of the directory.
        self.path = os.path.join(self._user, project.name)
        self._project = project

    def make(self) -> None:
        """Make the directory, unless it exists.

        :raises ControlError: if it cannot be made, or is not safe to use.
        :raises FileNotFoundError: if another process removes it meanwhile.
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
        """Remove the directory, if it is empty."""
        with suppress(OSError):
            os.rmdir(self.path)
            os.rmdir(self._user)

    def exists(self) -> bool:
        """Return whether the directory exists.

        :raises ControlError: if it exists, but is not safe to use.
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
            raise ControlError(f"{self.base} is not a directory; set DIRECTORY to one")
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

    def name_for(self, pid: int, random: str) -> SocketName:
        """Return the name of the socket of process *pid*.

        :raises ControlError: if its path is too long for a socket.
        """
        parts = (str(pid), kernel_tag(), host_tag(), random)
        name = SocketName(self.path, "-".join(parts), pid, *parts[1:])
        # The hidden name has one more byte, a dot.
        size = len(os.fsencode(name.path)) + 1
        if size > LONGEST_PATH:
            raise ControlError(
                f"the path of a socket in {self.path} would have {size} bytes, and the system takes {LONGEST_PATH}; "
                "set DIRECTORY to a shorter one"
            )
        return name

    def sockets(self) -> Iterator[SocketName]:
        """Yield the sockets in the directory. Removes abandoned hidden files.

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
                # The file was removed meanwhile.
                continue
            is_ours = found.st_uid == os.geteuid()
            if file.startswith("."):
                if is_ours and time.time() - found.st_mtime > ABANDONED_AFTER:
                    self._remove_abandoned(file, found.st_mode)
                continue
            name = SocketName.parse(self.path, file)
            if name is not None and is_ours and stat.S_ISSOCK(found.st_mode):
                yield name
            elif file != KEY:
                warn_once(f"{path} is not a socket of a process of ours: it is left alone")

    def _remove_abandoned(self, file: str, mode: int) -> None:
        name = SocketName.parse(self.path, file)
        half_made = name is not None and stat.S_ISSOCK(mode) and name.may_be_judged
        if half_made or (file.startswith(f".{KEY}-") and stat.S_ISREG(mode)):
            with suppress(OSError):
                os.unlink(os.path.join(self.path, file))

    # -- the key -------------------------------------------------------------------------------------------

    def key(self, *, make: bool) -> bytes | None:
        """Return the key that is derived from the project's secret; without a secret, the random one in a file here.

        :param make: whether to make the random key if there is none, or to return ``None``.
        :raises ControlError: if the key cannot be made or read, or others might have read it.
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
                # If two processes make a key at once, the second one uses that of the first.
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
        raise ControlError(
            f"the key {path} is damaged: it does not have {KEY_SIZE} bytes; remove it"
        )
    return key


def _check_owner(what: str, path: str, found: os.stat_result) -> None:
    """Check that *path* belongs to this user, or to root.

    :raises ControlError: if it does not.
    """
    if found.st_uid not in (os.geteuid(), 0):
        raise ControlError(
            f"{what} {path} is not safe: it belongs to user {found.st_uid}, who may replace what is in it; set "
            "DIRECTORY to one that belongs to this user or root"
        )


def _check_directory(path: str) -> None:
    """Check that *path* is a directory that only this user can use.

    :raises ControlError: if it is not.
    :raises FileNotFoundError: if it does not exist.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ControlError(f"the directory {path} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a directory"
        raise ControlError(f"{path} is {what}; remove it, or set DIRECTORY to another")
    if found.st_uid != os.geteuid():
        raise ControlError(
            f"the directory {path} belongs to user {found.st_uid}, but this process runs as user {os.geteuid()}; "
            "remove it, or set DIRECTORY to another"
        )
    if found.st_mode & 0o077:
        raise ControlError(
            f"the directory {path} is open to others (mode {stat.S_IMODE(found.st_mode):o}); chmod 700 it"
        )
