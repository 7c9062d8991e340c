"""Where cases take place: brokers of the suite's own on loopback, plain, with TLS, or behind a slow link."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.broker.certificates import Certificates
from tests.brokers import PrivateRabbitMQ, PrivateRedis, Unavailable, free_port
from tests.proxy import Proxy

__all__ = ["PLACES", "Places"]

#: Every place, and what the page calls it.
PLACES = {
    "none": "no broker",
    "memory": "kombu's broker in memory",
    "amqp": "RabbitMQ, loopback",
    "amqps": "RabbitMQ, loopback, TLS",
    "amqp+1ms": "RabbitMQ, 1 ms of round trip",
    "amqp+10ms": "RabbitMQ, 10 ms of round trip",
    "redis": "Redis, loopback",
    "rediss": "Redis, loopback, TLS",
}
DELAYS = {"amqp+1ms": 0.001, "amqp+10ms": 0.010}


class _Redis(PrivateRedis):
    """A Redis server that speaks TLS on a second port."""

    def __init__(self, certificates: Certificates) -> None:
        super().__init__()
        self._certificates = certificates
        self.tls_port = free_port()

    def command(self) -> list[str]:
        files = self._certificates
        return [
            *super().command(),
            *("--tls-port", str(self.tls_port), "--tls-auth-clients", "no"),
            *("--tls-cert-file", files.path("server"), "--tls-key-file", files.key("server")),
            *("--tls-ca-cert-file", files.path("ca")),
        ]


class Places:
    """Starts what a place needs when it is first asked for, and ends it all. Where RabbitMQ or Redis cannot be
    started, the ones that AMQP_URL and REDIS_URL name stand in, plain and without a slow link.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._known: dict[str, dict[str, Any]] = {
            "none": {"url": ""},
            "memory": {"url": "memory://"},
        }
        self._certificates: Certificates | None = None
        #: What was started, with its version.
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def __getitem__(self, place: str) -> dict[str, Any]:
        """The URL of a place, and the file of who signed for it (`ca`).

        :raises Unavailable: if its server cannot be started.
        """
        if place not in self._known:
            start = self._start_amqp if place.startswith("amqp") else self._start_redis
            variable = "AMQP_URL" if place.startswith("amqp") else "REDIS_URL"
            try:
                start()
            except Unavailable:
                if place not in ("amqp", "redis") or variable not in os.environ:
                    raise
                self._known[place] = {"url": os.environ[variable]}
        return self._known[place]

    def _signed(self) -> Certificates:
        if self._certificates is None:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
            try:
                self._certificates = Certificates(Path(folder))
            except FileNotFoundError:
                raise Unavailable("openssl is not installed") from None
        return self._certificates

    def _start_amqp(self) -> None:
        files, tls_port = self._signed(), free_port()
        node = self._stack.enter_context(
            PrivateRabbitMQ(
                {
                    "listeners.ssl.1": f"127.0.0.1:{tls_port}",
                    "ssl_options.certfile": files.path("server"),
                    "ssl_options.keyfile": files.key("server"),
                    "ssl_options.cacertfile": files.path("ca"),
                    "log.console.level": "error",
                }
            )
        )
        self.versions["RabbitMQ"] = node.ctl("version").strip()
        self._known["amqp"] = {"url": node.url}
        tls = f"amqps://guest:guest@localhost:{tls_port}//"
        self._known["amqps"] = {"url": tls, "ca": files.path("ca")}
        for place, seconds in DELAYS.items():
            proxy = self._stack.enter_context(Proxy("127.0.0.1", node.port))
            proxy.round_trip(seconds)
            self._known[place] = {"url": f"amqp://guest:guest@{proxy.address}//"}

    def _start_redis(self) -> None:
        import redis

        files = self._signed()
        server = self._stack.enter_context(_Redis(files))
        with redis.Redis(port=server.port) as client:
            self.versions["Redis"] = str(client.info("server")["redis_version"])
        self._known["redis"] = {"url": server.url}
        tls = f"rediss://localhost:{server.tls_port}/0"
        self._known["rediss"] = {"url": tls, "ca": files.path("ca")}
