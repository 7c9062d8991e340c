"""Machines of the tests' own: network namespaces with names of their own, each with a link to this thread's."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import pytest

from tests.brokers import PrivateRabbitMQ

__all__ = [
    "CONTAINER",
    "Machine",
    "OpenRabbitMQ",
    "machine",
    "private_network",
    "require_containers",
]

#: As in <sched.h>; Python has it from 3.12 on.
CLONE_NEWNET = 0x40000000
#: What a machine's first process does: it takes a name, says so, and is there until its input ends.
HOLD = "import socket, sys; socket.sethostname(sys.argv[1]); print(flush=True); sys.stdin.read()"


#: What runs a command in a container that shares this machine's name and disk, and counts processes from 1.
CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--")


def _cannot(why: str) -> NoReturn:
    pytest.skip(f"no machines of our own: {why}")


@contextmanager
def private_network() -> Iterator[None]:
    """Within, this thread, and whatever it starts, is in a network of its own, which ends with them."""
    if sys.platform != "linux":
        _cannot("network namespaces are Linux's")
    for program in ("ip", "nsenter", "unshare"):
        if shutil.which(program) is None:
            _cannot(f"{program} is not installed")
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before:
        if libc.unshare(CLONE_NEWNET):
            _cannot(os.strerror(ctypes.get_errno()))
        try:
            _run("ip", "link", "set", "lo", "up")
            yield
        finally:
            if libc.setns(before.fileno(), CLONE_NEWNET):
                # Every test after this one would be in the wrong network.
                pytest.exit(f"the network is lost: {os.strerror(ctypes.get_errno())}", 4)


def require_containers() -> None:
    """Skip where there can be none."""
    if shutil.which(CONTAINER[0]) is None:
        _cannot(f"{CONTAINER[0]} is not installed")
    done = subprocess.run([*CONTAINER, "true"], capture_output=True, text=True, timeout=60)
    if done.returncode:
        _cannot(done.stderr)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (command, done.stderr)


@dataclass(frozen=True)
class Machine:
    """One with a name, which reaches this thread's network at *gateway*, and no other machine."""

    name: str
    gateway: str
    #: What runs a command there.
    within: tuple[str, ...]


@contextmanager
def machine(name: str, number: int) -> Iterator[Machine]:
    """A machine, until the end of the block; what still runs on it keeps its network."""
    new = ("unshare", "--net", "--uts", "--", sys.executable, "-c", HOLD, name)
    with subprocess.Popen(new, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        if not holder.stdout.readline():
            _cannot(f"unshare ended with {holder.wait(60)}")
        ours, gateway = f"machine{number}", f"10.0.{number}.1"
        within = ("nsenter", "--target", str(holder.pid), "--net", "--uts", "--")
        _run(
            *("ip", "link", "add", ours, "type", "veth"),
            *("peer", "eth0", "netns", str(holder.pid)),
        )
        _run("ip", "address", "add", f"{gateway}/24", "dev", ours)
        _run("ip", "link", "set", ours, "up")
        _run(*within, "ip", "link", "set", "lo", "up")
        _run(*within, "ip", "address", "add", f"10.0.{number}.2/24", "dev", "eth0")
        _run(*within, "ip", "link", "set", "eth0", "up")
        yield Machine(name, gateway, within)


class OpenRabbitMQ(PrivateRabbitMQ):
    """A node that listens to other machines as well, and lets guest in from there: in a private network alone."""

    def __init__(self) -> None:
        super().__init__()
        self.config |= {"listeners.tcp.1": f"0.0.0.0:{self.port}", "loopback_users": "none"}

    def url_at(self, address: str) -> str:
        """The URL where it is reached at *address*."""
        return self.url.replace("127.0.0.1", address)
