"""An exception at any step of a publish, or a signal handler that publishes: the others go on, the note is true."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import kombu_pools_ext.broker
import kombu_pools_ext.publisher
from kombu_pools_ext import Pools
from kombu_pools_ext.publisher.reader import NAME
from tests.broker.common import PATIENCE, eventually, within
from tests.broker.conftest import Inbox
from tests.engine.steps import Killed, Steps
from tests.publisher.conftest import Crowd, MakePools, message, publisher_of

pytestmark = [pytest.mark.slow, pytest.mark.threads, pytest.mark.broker]

PUBLISHER = str(Path(kombu_pools_ext.publisher.__file__).parent)
BROKER = str(Path(kombu_pools_ext.broker.__file__).parent)
#: More steps than any publish has.
ENDLESS = 5000
#: Seconds within which the others have to go on: less than a confirm is waited for.
SOON = 8.0

MakeInbox = Callable[[str], Inbox]


def note_of(error: BaseException) -> str:
    return " ".join(getattr(error, "__notes__", ()))


def check(said: dict[str, str], box: Inbox) -> None:
    """Fail unless what was said of each message is true of *box*."""
    expected = sum(word == "published" for word in said.values())
    found = Counter(one.properties["message_id"] for one in box.messages(expected))
    for name, word in said.items():
        allowed = {"published": (1,), "not sent": (0,), "perhaps": (0, 1)}[word]
        assert found[name] in allowed, f"{name}: {found[name]} there, said: {word}"


def settled(pools: Pools) -> None:
    """Fail unless nothing is in flight or lent any more, soon."""
    publisher = publisher_of(pools)
    eventually(lambda: not publisher.live, SOON)
    eventually(lambda: pools.connections["default"].stats().lent == 0, SOON)
    # The reading thread is always inside.
    readers = {one.ident for one in threading.enumerate() if one.name == NAME}
    assert publisher._inside <= readers
    # The reading thread gives them back a moment after the lease.
    eventually(lambda: not publisher._roles._holders, SOON)
    assert not publisher._waiting


def attempt(
    pools: Pools, box: Inbox, at: int, said: dict[str, str], folder: str = PUBLISHER
) -> bool:
    """Publish, and be killed at step *at*; return whether that has happened."""
    name = f"attempt {at}"

    def kill() -> None:
        raise Killed

    steps = Steps(kill, at, folder=folder)

    def run() -> BaseException | None:
        try:
            steps(lambda: pools.publish("x", box.name, message_id=name))
        except BaseException as raised:
            return raised
        return None

    error = within(PATIENCE, run)
    if error is None:
        said[name] = "published"
    else:
        assert isinstance(error, Killed), f"step {at}: {error!r}"
        said[name] = "not sent" if "was not sent" in note_of(error) else "perhaps"
    return steps.happened


@pytest.mark.parametrize("folder", [PUBLISHER, BROKER], ids=["publisher", "broker"])
def test_an_exception_at_any_step_of_a_lone_publish(
    amqp_url: str, shared: MakePools, inbox: MakeInbox, folder: str
) -> None:
    pools, box = shared(amqp_url, LIMIT=1), inbox(amqp_url)
    pools.publish("warm", box.name, message_id="warm")
    said: dict[str, str] = {"warm": "published"}
    at = 0
    for at in range(1, ENDLESS):
        happened = attempt(pools, box, at, said, folder)
        within(SOON, lambda at=at: pools.publish("x", box.name, message_id=f"after {at}"))
        said[f"after {at}"] = "published"
        settled(pools)
        if not happened:
            break
    else:
        pytest.fail("there is no end to the steps")
    assert at > 50
    check(said, box)
    assert "not sent" in said.values()
    assert "perhaps" in said.values()


def test_an_exception_at_any_step_beside_others(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    pools, box = shared(amqp_url, LIMIT=2), inbox(amqp_url)
    pools.publish("warm", box.name, message_id="warm")
    said: dict[str, str] = {}
    done, ended = [0, 0, 0], threading.Event()

    def beside(thread: int) -> None:
        while not ended.is_set():
            pools.publish("x", box.name, message_id=f"beside {thread} {done[thread]}")
            done[thread] += 1

    crowd = Crowd(3, beside)
    try:
        for at in range(1, ENDLESS, 2):
            happened = attempt(pools, box, at, said)
            before = list(done)
            eventually(
                lambda before=before: all(now > old for now, old in zip(done, before, strict=True)),
                SOON,
            )
            if not happened:
                break
        else:
            pytest.fail("there is no end to the steps")
    finally:
        ended.set()
    assert crowd.errors() == []
    settled(pools)
    said.update(
        {f"beside {thread} {n}": "published" for thread in range(3) for n in range(done[thread])}
    )
    found = Counter(one.properties["message_id"] for one in box.messages())
    for name, word in said.items():
        if word == "not sent":
            assert not found[name], name
        elif word == "published":
            # Once more, if the connection was given up for what interrupted another one.
            assert found[name], name
    assert "not sent" in said.values()
    assert "perhaps" in said.values()


def test_a_signal_handler_that_publishes_at_any_step(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    pools, box = shared(amqp_url, LIMIT=2), inbox(amqp_url)
    pools.publish("warm", box.name)
    expected = ["warm"]
    for at in range(1, ENDLESS):
        steps = Steps(
            lambda at=at: pools.publish("x", box.name, message_id=f"within {at}"),
            at,
            folder=PUBLISHER,
        )
        within(
            PATIENCE,
            lambda steps=steps, at=at: steps(
                lambda: pools.publish("x", box.name, message_id=f"around {at}")
            ),
        )
        expected.append(f"around {at}")
        settled(pools)
        if not steps.happened:
            break
        expected.append(f"within {at}")
    else:
        pytest.fail("there is no end to the steps")
    found = Counter(one.properties["message_id"] for one in box.messages(len(expected)))
    assert set(found.values()) == {1}
    assert set(expected[1:]) <= set(found)


def test_a_signal_handler_that_submits_at_any_step(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    pools, box = shared(amqp_url, LIMIT=2), inbox(amqp_url)
    pools.publish("warm", box.name)
    told: list[str] = []
    for at in range(1, ENDLESS, 3):

        def submit(at: int = at) -> None:
            one = message(pools, "x", box.name, message_id=f"within {at}")
            publisher_of(pools).submit(one, lambda one: told.append(one.message_id))

        steps = Steps(submit, at, folder=PUBLISHER)
        within(PATIENCE, lambda steps=steps: steps(lambda: pools.publish("x", box.name)))
        if not steps.happened:
            break
        eventually(lambda at=at: told[-1:] == [f"within {at}"], SOON)
        settled(pools)
    else:
        pytest.fail("there is no end to the steps")
    assert len(told) == len(set(told))
