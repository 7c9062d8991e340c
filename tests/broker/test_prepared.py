"""A message that is prepared now and published later is the one that publish would have sent now."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import kombu
import pytest
from kombu.exceptions import EncodeError
from kombu.serialization import registry

from kombu_pools_ext import Pools
from kombu_pools_ext.errors import UnknownAlias
from kombu_pools_ext.prepared import PreparedMessage, prepare
from tests.broker.conftest import Inbox

#: What differs between two messages with equal arguments.
OF_EACH = {"delivery_tag", "delivery_info"}


@pytest.fixture
def latin() -> Any:
    """A serializer whose text is not in UTF-8."""
    registry.register("latin", str, str, "application/x-latin", "latin-1")
    yield "latin"
    registry.unregister("latin")


def arrived(message: kombu.Message) -> dict[str, Any]:
    """All that a consumer can see of it."""
    properties = {key: one for key, one in message.properties.items() if key not in OF_EACH}
    return {
        "body": bytes(message.body) if not isinstance(message.body, str) else message.body,
        "type": message.content_type,
        "encoding": message.content_encoding,
        "headers": message.headers,
        "properties": properties,
    }


def publish(pools: Pools, message: PreparedMessage) -> None:
    pools.publish(message.body, using=message.using, **message.arguments)


@pytest.mark.parametrize(
    "body, options",
    [
        ({"a": [1, 2.5, None, "é"]}, {}),
        ({"a": 1}, {"serializer": "json", "priority": 3, "expiration": 60.5}),
        ({"a": {1, 2}, "b": b"\xff"}, {"serializer": "pickle"}),
        ("text: é", {}),
        ("text: é", {"serializer": "json"}),
        ("text: é", {"content_type": "text/x-note", "content_encoding": "latin-1"}),
        (b"\x00\xff", {}),
        (b"\x00\xff", {"content_type": "application/x-note"}),
        (bytearray(b"\x00\xff"), {"content_type": "application/x-note"}),
        (b"\x00\xff", {"serializer": "raw"}),
        ({"a": "long " * 100}, {"compression": "gzip", "headers": {"h": [1, {"i": "é"}]}}),
        ({"a": "é"}, {"delivery_mode": 1, "correlation_id": "c", "type": "t", "app_id": "a"}),
        ("text: é", {"serializer": "latin"}),
        ({}, {"delivery_mode": "transient", "headers": {}}),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("alias", [{}, {"serializer": "pickle"}])
@pytest.mark.usefixtures("latin")
def test_the_same_as_publish_sends(
    url: str,
    inbox: Callable[[str], Inbox],
    body: Any,
    options: dict[str, Any],
    alias: dict[str, Any],
) -> None:
    pools, queue = Pools(default={"url": url, **alias}), inbox(url)
    given = {"routing_key": queue.name, "message_id": "the-same", **options}
    # kombu writes into the headers that it gets.
    pools.publish(body, **copy.deepcopy(given))
    publish(pools, prepare(pools, body, **given))
    at_once, later = queue.messages(2)
    assert arrived(later) == arrived(at_once)


@pytest.mark.parametrize("options", [{}, {"compression": ""}, {"compression": "gzip"}])
def test_compressed_as_the_alias_says(
    url: str, inbox: Callable[[str], Inbox], options: dict[str, Any]
) -> None:
    pools, queue = Pools(default={"url": url, "compression": "bzip2"}), inbox(url)
    given = {"routing_key": queue.name, "message_id": "the-same", **options}
    pools.publish({"a": "é"}, **given)
    publish(pools, prepare(pools, {"a": "é"}, **given))
    at_once, later = queue.messages(2)
    assert arrived(later) == arrived(at_once)
    assert later.payload == {"a": "é"}


def test_an_exchange_gives_its_delivery_mode(
    url: str, inbox: Callable[[str], Inbox], queue: str
) -> None:
    pools, target = Pools(default=url), inbox(url)
    exchange = kombu.Exchange(f"{queue}.x", "direct", delivery_mode=1, auto_delete=True)
    bound = kombu.Queue(queue, exchange, routing_key="k", durable=False)
    given: dict[str, Any] = {"exchange": exchange, "declare": [bound], "message_id": "the-same"}
    pools.publish({}, "k", **given)
    message = prepare(pools, {}, "k", **given)
    exchange.delivery_mode = 2
    publish(pools, message)
    at_once, later = target.messages(2)
    assert arrived(later) == arrived(at_once)
    assert later.properties["delivery_mode"] == 1


def test_what_is_changed_later_is_not_sent_changed(url: str, inbox: Callable[[str], Inbox]) -> None:
    pools, queue = Pools(default=url), inbox(url)
    body, headers, declare = (
        {"n": [1]},
        {"h": [1], "d": {"e": 1}},
        [kombu.Queue(queue.name, durable=False)],
    )
    message = prepare(pools, body, queue.name, headers=headers, declare=declare)
    body["n"].append(2)
    headers["h"].append(2)  # type: ignore[attr-defined]
    headers["d"]["e"] = 2  # type: ignore[index]
    headers["x"] = 1
    declare.append("no queue")  # type: ignore[arg-type]
    publish(pools, message)
    (sent,) = queue.messages(1)
    assert sent.payload == {"n": [1]}
    assert {name: sent.headers[name] for name in ("h", "d")} == {"h": [1], "d": {"e": 1}}
    assert "x" not in sent.headers


def test_what_is_declared_is_what_it_was(amqp_url: str, inbox: Callable[[str], Inbox]) -> None:
    pools, box = Pools(default=amqp_url), inbox(amqp_url)
    exchange = kombu.Exchange(f"{box.name}.x", "direct", durable=False, auto_delete=True)
    another = kombu.Exchange(f"{box.name}.y", "direct", durable=False, auto_delete=True)
    by_exchange = kombu.Queue(box.name, exchange, "k", durable=False, queue_arguments={})
    by_binding = kombu.Queue(
        box.name, bindings=[kombu.binding(another, "k", {"a": {}})], durable=False
    )
    messages = [
        prepare(pools, 1, "k", exchange=exchange, declare=[by_exchange]),
        prepare(pools, 2, "k", exchange=another, declare=by_binding),
    ]
    (bound,) = by_binding.bindings
    bound.routing_key, bound.arguments["a"] = "other", object()
    by_exchange.queue_arguments["x-max-length"] = -1
    for entity in (exchange, another, by_exchange, by_binding):
        entity.name, entity.durable = "\0", True
    for message in messages:
        publish(pools, message)
    assert [one.payload for one in box.messages(2)] == [1, 2]


def test_an_entity_of_ones_own_is_kept_whole(memory_url: str, queue: str) -> None:
    class Mine(kombu.Queue):  # type: ignore[misc]  # kombu ships no types
        number = 0

    declared: list[Any] = []
    pools, mine = (
        Pools(default=memory_url),
        Mine(queue, on_declared=lambda *told: declared.append(told)),
    )
    mine.number = 5
    message = prepare(pools, 1, mine, declare=mine)
    mine.number = 6
    (kept,) = message.arguments["declare"]
    assert (type(kept), kept.number, kept.on_declared) == (Mine, 5, mine.on_declared)
    publish(pools, message)
    assert len(declared) == 1


def test_nothing_of_the_caller_is_changed(memory_url: str) -> None:
    pools, headers = Pools(default=memory_url), {"a": 1}
    prepare(pools, "text", "q", headers=headers, compression="gzip")
    assert headers == {"a": 1}


@pytest.mark.parametrize(
    "body, options",
    [
        (object(), {}),
        ({"a": object()}, {"serializer": "json"}),
        (lambda: None, {"serializer": "pickle"}),
        ("\ud800", {}),
        ("é", {"content_type": "text/x", "content_encoding": "us-ascii"}),
        ({"a": 1}, {"content_type": "application/json"}),
    ],
    ids=["json", "within", "pickle", "surrogate", "encoding", "said-to-be-serialized"],
)
def test_a_body_that_cannot_be_sent_fails_now(
    memory_url: str, body: Any, options: dict[str, Any]
) -> None:
    pools = Pools(default=memory_url)
    with pytest.raises((EncodeError, UnicodeEncodeError, TypeError)):
        prepare(pools, body, "q", **options)
    assert pools.connections["default"].stats().acquires == 0


def test_an_unknown_alias_fails_now(memory_url: str) -> None:
    with pytest.raises(UnknownAlias, match="did you mean 'default'"):
        prepare(Pools(default=memory_url), {}, "q", using="defualt")


def test_the_message_is_named_now_and_each_has_a_name_of_its_own(memory_url: str) -> None:
    pools = Pools(default=memory_url)
    names = {prepare(pools, {}, "q", message_id=name).message_id for name in (None, None, "mine")}
    assert len(names) == 3
    assert "mine" in names


def test_it_tells_where_it_goes_and_whence_it_comes_and_nothing_of_what_it_holds(
    memory_url: str,
) -> None:
    message = prepare(Pools(default=memory_url), "s3cr3t", "q", headers={"h": "s3cr3t"})
    told = repr(message)
    assert "alias 'default', exchange '', routing key 'q'" in told
    assert f"{__file__}:" in told
    assert "in test_it_tells_where_it_goes" in told
    assert "s3cr3t" not in told


def test_a_body_of_pickle_is_made_once(url: str, inbox: Callable[[str], Inbox]) -> None:
    made: list[int] = []

    class Counted:
        def __reduce__(self) -> Any:
            made.append(1)
            return int, (7,)

    pools, queue = Pools(default={"url": url, "serializer": "pickle"}), inbox(url)
    publish(pools, prepare(pools, Counted(), queue.name))
    (sent,) = queue.messages(1)
    assert pickle.loads(bytes(sent.body)) == 7
    assert len(made) == 1
