"""How many of our files one message passes through."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import kombu
import pytest

import kombu_pools_ext
from kombu_pools_ext import pools
from tests.broker.common import PATIENCE

PACKAGE = str(Path(kombu_pools_ext.__file__).parent)
#: What the sockets of gevent and eventlet need besides: their own flags are not the kernel's.
ON_A_HUB = {"_unblocked", "_quick_recv"}
#: Of one publish on a leased producer: calls, files, and changes of file from one call to the next. Each bound is what
#: was reached: whoever puts a layer more into the way of each message is told.
BOUNDS = {"confirmed": (22, 8, 12), "unconfirmed": (16, 7, 9)}


def calls_in(action: Callable[[], object]) -> list[tuple[str, str]]:
    """The calls of our own functions in *action*, in their order: file and function of each."""
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        ours = event == "call" and code.co_filename.startswith(PACKAGE)
        if ours and not (code.co_name in ON_A_HUB and socket.socket.__module__ != "socket"):
            file = Path(code.co_filename).relative_to(PACKAGE).as_posix()
            calls.append((file, code.co_name))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(before)
    return calls


def figures_of(calls: list[tuple[str, str]]) -> tuple[int, int, int]:
    files = [file for file, _ in calls]
    return len(calls), len(set(files)), sum(one != other for one, other in pairwise(files))


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_warm_publish_passes_through_few_files(kind: str, amqp_url: str, queue: str) -> None:
    options = {"confirm_publish": kind == "confirmed"}
    producers = pools.ProducerPool(
        pools.ConnectionPool(kombu.Connection(amqp_url, transport_options=options), limit=1)
    )

    def publish_once() -> None:
        with producers.acquire(timeout=PATIENCE) as producer:
            producer.publish({"id": 1}, routing_key=queue)

    for _ in range(5):
        publish_once()
    whole = calls_in(publish_once)
    with producers.acquire(timeout=PATIENCE) as producer:
        calls = calls_in(lambda: producer.publish({"id": 1}, routing_key=queue))
    producers.force_close_all()
    figures = figures_of(calls)
    told = "{} calls in {} files, {} changes of file"
    print(f"{kind}, from acquire to release:", told.format(*figures_of(whole)))
    print(f"{kind}, the publish alone:", told.format(*figures))
    for file, function in calls:
        print(f"    {file} {function}")
    assert all(one <= bound for one, bound in zip(figures, BOUNDS[kind], strict=True)), figures
