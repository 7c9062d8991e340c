"""An application that publishes while it is loaded, and in each request; the answer tells of the threads there are."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from kombu_pools_ext import Pools
from kombu_pools_ext.errors import PoolTimeout

PATIENCE = 30
#: Each has threads of its own to open with.
ALIASES = [f"alias{n}" for n in range(30)]

pools = Pools(
    {alias: {"URL": f"memory://{alias}", "ACQUIRE_TIMEOUT": PATIENCE} for alias in ALIASES}
)


def publish() -> None:
    for alias in ALIASES:
        pools.publish({"id": 1}, "orders", using=alias)


def application(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    publish()
    threads = sorted({thread.name for thread in threading.enumerate()})
    answer = {"pid": os.getpid(), "at_import": at_import, "threads": threads}
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


publish()
# Whoever gives up leaves his opening to the threads, where there are any: they are at it while workers are forked.
for alias in ALIASES:
    with contextlib.suppress(PoolTimeout):
        pools.connections[alias].acquire(timeout=0).release()
#: The threads of the process that loads this.
at_import = sorted(thread.name for thread in threading.enumerate())
