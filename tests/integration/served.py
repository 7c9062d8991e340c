"""What the tests have served: an application that publishes, for WSGI and ASGI servers and for Celery.

Settings come from the environment: ``SERVED_URL``, ``LIMIT``, ``QUEUE``, and ``FIRST``, with which the process that
imports this publishes a first message; with ``CONTROL``, a directory, its processes take commands from whoever knows
``SECRET``, and with ``BROADCAST``, an alias, from other machines too. ``/hold`` keeps its lease until the file that it
was given is gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import kombu

from kombu_pools_ext import Pools, control

#: Seconds to wait for a lease on a busy machine.
PATIENCE = 30

pools = Pools(
    {
        "default": {
            "URL": os.environ["SERVED_URL"],
            "LIMIT": int(os.environ["LIMIT"]),
            "ACQUIRE_TIMEOUT": PATIENCE,
            "HEARTBEAT": int(os.environ.get("HEARTBEAT", "60")),
        }
    }
)
queue = kombu.Queue(os.environ["QUEUE"])
if directory := os.environ.get("CONTROL"):
    control.attach(
        pools,
        {"DIRECTORY": directory, "BROADCAST": os.environ.get("BROADCAST")},
        secret=os.environ["SECRET"],
    )


def publish(number: int) -> dict[str, Any]:
    """One message; what it says, and what it took."""
    began = time.monotonic()
    pools.publish(number, queue.name, declare=[queue])
    took = time.monotonic() - began
    stats = pools.connections["default"].stats()
    return {"number": number, "pid": os.getpid(), "took": took, "size": stats.size}


def hold(number: int, file: Path) -> dict[str, Any]:
    """One message through a lease that is held as long as *file* is there; its holder writes his number there."""
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        file.write_text(str(os.getpid()))
        while file.exists():
            time.sleep(0.01)
        producer.publish(number, routing_key=queue.name, declare=[queue])
    return {"number": number, "pid": os.getpid()}


def answer(path: str, query: str) -> bytes:
    """What a request gets."""
    given = {name: values[0] for name, values in parse_qs(query).items()}
    if path == "/publish":
        found = publish(int(given["number"]))
    elif path == "/hold":
        found = hold(int(given["number"]), Path(given["file"]))
    else:
        time.sleep(0.01)
        found = {"pid": os.getpid()}
    return json.dumps(found).encode()


def application(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    """For WSGI servers."""
    body = answer(environ["PATH_INFO"], environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


async def asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """For ASGI servers; what waits for a broker does so in a thread."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        # The process dies of the signal that ended it: no exit handler says goodbye.
        await asyncio.to_thread(pools.drain, PATIENCE)
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = await asyncio.to_thread(answer, scope["path"], scope["query_string"].decode())
    length = (b"Content-Length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


if os.environ.get("FIRST"):
    publish(0)
