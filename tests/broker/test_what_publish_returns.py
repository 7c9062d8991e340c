"""A publish that returns has done its work, and returns nothing: on each transport, with confirms or without."""

from __future__ import annotations

from typing import Any

import kombu
import pytest

from kombu_pools_ext import Pools, pools
from tests.broker.common import PATIENCE
from tests.broker.rig import BROKERS, confirming

URLS = [*BROKERS, "memory"]


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest) -> str:
    name = "memory_url" if request.param == "memory" else f"{request.param}_url"
    if request.param == "amqps":
        node = request.getfixturevalue("node")
        request.getfixturevalue("monkeypatch").setenv("SSL_CERT_FILE", str(node.certificate))
        return str(node.tls_url)
    return str(request.getfixturevalue(name))


@pytest.mark.parametrize("confirms", [True, False])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"headers": {"a": 1}},
        # Kombu's own way.
        {"compression": "gzip"},
        {"retry": True},
    ],
    ids=str,
)
def test_a_publish_on_a_lease(url: str, confirms: bool, more: dict[str, Any]) -> None:
    connections = pools.ConnectionPool(confirming(url) if confirms else kombu.Connection(url))
    with pools.ProducerPool(connections).acquire(timeout=PATIENCE) as producer:
        # The first one opens what the others find.
        for _ in range(2):
            assert producer.publish("x", routing_key="nobody's", **more) is None
        with producer.batch():
            assert producer.publish("x", routing_key="nobody's", **more) is None
    connections.force_close_all()


@pytest.mark.parametrize("confirms", [True, False])
def test_a_publish_by_alias(url: str, confirms: bool) -> None:
    settings = {"url": url, "confirm": confirms, "mandatory": False}
    by_alias = Pools(default=settings)
    for _ in range(2):
        # The type checkers know that it is nothing.
        done: object = by_alias.publish("x", "nobody's")  # type: ignore[func-returns-value]
        assert done is None
    by_alias.drain()


@pytest.mark.broker
def test_a_publish_over_kombus_own_pool(amqp_url: str) -> None:
    kombus = kombu.Connection(amqp_url).Pool(1)
    with pools.ProducerPool(kombus).acquire(block=True) as producer:
        assert producer.publish("x", routing_key="nobody's") is None
    kombus.force_close_all()


def test_a_producer_class_of_somebodys_own_returns_what_it_wants(memory_url: str) -> None:
    class Telling(kombu.Producer):
        def publish(self, *args: Any, **kwargs: Any) -> Any:
            super().publish(*args, **kwargs)
            return "done"

    connections = pools.ConnectionPool(kombu.Connection(memory_url))
    with pools.ProducerPool(connections, Producer=Telling).acquire(timeout=PATIENCE) as producer:
        assert producer.publish("x", routing_key="nobody's") == "done"
    connections.force_close_all()
