"""The recipe "Publish many", word for word: whatever happens, each message is in the queue or named by the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kombu_pools_ext.broker.amqp import pipelined_batch
from kombu_pools_ext.errors import BatchFailed, Outcome
from tests.broker.common import PATIENCE, within
from tests.broker.conftest import Inbox
from tests.broker.rig import through
from tests.docs_runner import examples
from tests.proxy import TO_CLIENT, TO_SERVER, Frame, Proxy

pytestmark = pytest.mark.broker

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "publish-safely.md"
#: What is in the recipe, and not in a test.
URL, QUEUE = '"amqp://guest:guest@localhost//"', 'Queue("orders")'

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def proxy(amqp_url: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(amqp_url)


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[BatchFailed]:
    """What the recipe catches."""
    made: list[BatchFailed] = []

    class Noted(BatchFailed):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(pipelined_batch, "BatchFailed", Noted)
    return made


@pytest.fixture
def run(amqp_url: str, proxy: Proxy, failures: list[BatchFailed]) -> Run:
    """Runs the recipe by way of the proxy, for the queue of this name; what its variables are afterwards."""
    (code,) = (code for _, code in examples(PAGE) if "BatchFailed" in code)
    assert code.count(URL) == code.count(QUEUE) == 1

    def run(queue: str, **arguments: Any) -> dict[str, Any]:
        mine = code.replace(URL, f'"{through(proxy, amqp_url)}", "confirm_timeout": 0.5')
        names: dict[str, Any] = {"__name__": "recipe"}
        meant = f'Queue("{queue}", durable=False, queue_arguments={arguments})'
        source = mine.replace(QUEUE, meant)
        within(PATIENCE, lambda: exec(compile(source, str(PAGE), "exec"), names))
        return names | {"unsent": {one for failed in failures for one in failed.unsent}}

    return run


def check(names: dict[str, Any], box: Inbox) -> set[Outcome | None]:
    """Each message is in the queue, or named as one that may not be; the outcomes of the latter."""
    there = {message.properties["message_id"] for message in box.messages()}
    orders, left = names["orders"], names["left"]
    assert len(orders) == 1000
    assert set(orders) - set(left) <= there
    assert there <= set(orders)
    assert set(left) <= set(orders)
    # What was not given to the batch, and what it never sent, is not there.
    never = {one for one, outcome in left.items() if outcome is None}
    assert not (never | names["unsent"]) & there
    return set(left.values())


@pytest.fixture
def box(amqp_url: str, queue: str) -> Iterator[Inbox]:
    one = Inbox(amqp_url, queue)
    yield one
    one.delete()


def test_when_nothing_happens(run: Run, box: Inbox) -> None:
    assert check(run(box.name), box) == set()


@pytest.mark.parametrize("rst", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize(
    "direction, place",
    [
        (TO_SERVER, Frame("basic.publish", 5)),
        (TO_SERVER, 3_000),
        (TO_SERVER, 30_000),
        (TO_SERVER, 90_000),
        (TO_SERVER, 120_000),
        (TO_CLIENT, Frame("basic.ack", 5)),
    ],
    ids=str,
)
def test_when_the_connection_is_cut(
    run: Run, box: Inbox, proxy: Proxy, direction: str, place: Any, rst: bool
) -> None:
    proxy.play([(direction, place, "reset" if rst else "cut")], coming=1)
    outcomes = check(run(box.name), box)
    assert proxy.links[0].closed
    assert Outcome.UNKNOWN in outcomes
    assert outcomes <= {Outcome.UNKNOWN, None}


@pytest.mark.parametrize("rst", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("answer", ["channel.open-ok", "confirm.select-ok"])
def test_when_the_connection_is_cut_before_it_is_open(
    run: Run, box: Inbox, proxy: Proxy, answer: str, rst: bool
) -> None:
    proxy.play([(TO_CLIENT, Frame(answer, 5), "reset" if rst else "cut")], coming=1)
    assert check(run(box.name), box) == set()
    assert len(proxy.links) == 2


@pytest.mark.parametrize("which", ["the server hears nothing", "the client hears nothing"])
def test_when_the_peer_falls_silent(run: Run, box: Inbox, proxy: Proxy, which: str) -> None:
    direction = TO_SERVER if which.startswith("the server") else TO_CLIENT
    place: Any = 60_000 if direction == TO_SERVER else Frame("basic.ack")
    proxy.play([(direction, place, "hold")], coming=1)
    names = run(box.name)
    proxy.heal()
    proxy.cut()
    assert Outcome.UNKNOWN in check(names, box)


def test_when_the_queue_is_full(run: Run, amqp_url: str, queue: str) -> None:
    arguments = {"x-max-length": 300, "x-overflow": "reject-publish"}
    box = Inbox(amqp_url, queue, **arguments)
    try:
        assert check(run(box.name, **arguments), box) == {Outcome.NACKED}
    finally:
        box.delete()
