"""A signal handler that raises within a publish: Celery's soft time limit, an alarm's time-out.

What it raises reaches the caller at once, as the same object, whatever its class; nothing is sent again; and what the
note on it says of the message is true.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import amqp
import kombu
import pytest

import kombu_pools_ext.broker
from kombu_pools_ext import Pools
from kombu_pools_ext.broker.amqp import compat
from kombu_pools_ext.errors import PublishError
from tests.broker.common import PATIENCE, within
from tests.broker.conftest import Inbox
from tests.broker.rig import BROKERS, through
from tests.engine.steps import Steps
from tests.proxy import TO_CLIENT, Proxy

MakeInbox = Callable[[str], Inbox]

OURS = str(Path(kombu_pools_ext.broker.__file__).parent)
PY_AMQP = str(Path(amqp.__file__).parent)
#: More steps than any publish has.
ENDLESS = 5000


class SoftTimeLimit(Exception):
    """As Celery's."""


class Alarm(TimeoutError):
    """A time-out of the application's: a class that counts as the socket's."""


class Reset(ConnectionResetError):
    """A class whose errors are tried again, if the socket raises them."""


class Missing(KeyError):
    """What py-amqp makes of frames that it cannot read."""


@pytest.mark.slow
@pytest.mark.threads
@pytest.mark.broker
@pytest.mark.parametrize(
    "kind, folder, confirm",
    [
        (kind, folder, confirm)
        for kind in (SoftTimeLimit, Alarm, Reset, Missing)
        for folder in (OURS, PY_AMQP)
        for confirm in (True, False)
        # Before a publish without confirms, py-amqp itself looks for what came, and swallows a time-out.
        if not (kind is Alarm and folder is PY_AMQP and not confirm)
    ],
    ids=lambda value: (
        Path(value).name if isinstance(value, str) else getattr(value, "__name__", None)
    ),
)
def test_it_reaches_the_caller_at_any_step_and_the_note_is_true(
    amqp_url: str, inbox: MakeInbox, kind: type[Exception], folder: str, confirm: bool
) -> None:
    box = inbox(amqp_url)
    pools = Pools({"default": {"URL": amqp_url, "LIMIT": 1, "CONFIRM": confirm}})
    # Encoded in the way of kombu and py-amqp where their steps count.
    options = {} if folder is OURS else {"compression": "zlib"}
    said: dict[str, str] = {}
    for at in range(1, ENDLESS):
        raised = kind("an alarm")

        def strike(raised: Exception = raised) -> None:
            raise raised

        steps, name = Steps(strike, at, folder=folder), f"attempt {at}"

        def publish(name: str = name) -> None:
            with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
                producer.publish("x", routing_key=box.name, message_id=name, **options)

        def run(steps: Steps = steps, publish: Callable[[], None] = publish) -> Any:
            try:
                return steps(publish)
            except BaseException as caught:
                return caught

        error = within(PATIENCE, run)
        if not steps.happened:
            assert error is None
            break
        if error is None:
            # In the release, or in what ends a block: the publish was over.
            said[name] = "published"
        else:
            assert error is raised, f"step {at}: {error!r}"
            notes = " ".join(getattr(error, "__notes__", ()))
            said[name] = "not there" if "not in the broker" in notes else "perhaps"
        raised.__traceback__ = None
        with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
            producer.publish("x", routing_key=box.name, message_id=f"after {at}")
            if not confirm:
                # What the broker has not come to is lost with a connection that ends without a word.
                producer.channel.queue_declare(box.name, passive=True)
        said[f"after {at}"] = "published"
    else:
        pytest.fail("there is no end to the steps")
    expected = sum(word == "published" for word in said.values())
    found = Counter(one.properties["message_id"] for one in box.messages(expected))
    for name, word in said.items():
        allowed = {"published": (1,), "not there": (0,), "perhaps": (0, 1)}[word]
        assert found[name] in allowed, f"{name}: {found[name]} there, said: {word}"
    assert "not there" in said.values()
    assert "perhaps" in said.values()
    pools.reset()


@pytest.fixture
def alarm() -> Iterator[Callable[[BaseException, float], None]]:
    """Have SIGALRM raise in the main thread, so many seconds later."""
    before = signal.getsignal(signal.SIGALRM)

    def set_one(error: BaseException, seconds: float) -> None:
        def handler(number: int, frame: Any) -> None:
            raise error

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    yield set_one
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.threads
@pytest.mark.parametrize("retry", [None, {"max_retries": 3}])
@pytest.mark.parametrize(
    "error",
    [SoftTimeLimit("soft"), TimeoutError("alarm"), OSError("alarm"), BlockingIOError("alarm")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("broker_url", BROKERS, indirect=True)
def test_it_ends_the_wait_for_an_answer_that_does_not_come(
    broker_url: str,
    proxied: Callable[[str], Proxy],
    queue: str,
    alarm: Callable[[BaseException, float], None],
    error: Exception,
    retry: dict[str, int] | None,
) -> None:
    proxy = proxied(broker_url)
    settings = {"URL": through(proxy, broker_url), "LIMIT": 1, "RETRY": retry}
    pools = Pools({"default": settings})
    with pools.producers["default"].acquire(timeout=PATIENCE) as producer:
        kombu.Queue(queue, durable=False)(producer.channel).declare()
        producer.publish("warm", routing_key=queue)
    proxy.hold(TO_CLIENT)
    alarm(error, 0.05)
    with pytest.raises(type(error)) as caught:
        pools.publish("x", queue, message_id="mine")
    assert caught.value is error
    assert "mine" in " ".join(error.__notes__)
    assert "may be in the broker" in " ".join(error.__notes__)
    del error.__notes__
    proxy.heal()
    # The answer that is still to come is nobody else's.
    pools.publish("next", queue)
    assert pools.connections["default"].stats().closed == {"broken": 1}
    assert pools.connections["default"].stats().opened == 2
    with pools.connections["default"].acquire(timeout=PATIENCE) as connection:
        kombu.Queue(queue)(connection.default_channel).delete()
    pools.reset()


@pytest.mark.broker
def test_an_exception_of_a_callback_within_a_publish_is_the_applications(
    amqp_url: str, queue: str
) -> None:
    pools = Pools({"default": {"URL": amqp_url, "LIMIT": 1}})

    class Body:
        def __reduce__(self) -> Any:
            raise OSError("the file of the body is gone")

    with pytest.raises(kombu.exceptions.EncodeError) as caught:
        pools.publish(Body(), queue, serializer="pickle")
    assert not isinstance(caught.value, PublishError)
    # Nothing was interrupted.
    assert not getattr(caught.value, "__notes__", [])
    assert pools.connections["default"].stats().closed == {}
    pools.reset()


@pytest.mark.parametrize("moment", ["acquire", "end_lease"])
def test_before_and_after_the_publish_the_note_says_what_became_of_the_message(
    memory_url: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    pools = Pools({"default": {"URL": memory_url, "LIMIT": 1}})
    pools.publish("warm", "q")

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise SoftTimeLimit

    monkeypatch.setattr(type(pools.producers["default"]), moment, interrupted)
    with pytest.raises(SoftTimeLimit) as caught:
        pools.publish("x", "q", message_id="mine")
    became = "is not in the broker" if moment == "acquire" else "was published before that"
    (note,) = caught.value.__notes__
    assert "message mine" in note
    assert became in note


def test_a_look_at_the_installed_versions_that_is_interrupted_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compat, "_fits", None)

    trials, alarms = compat._trials, [SoftTimeLimit]

    def interrupted_once() -> Any:
        if alarms:
            raise alarms.pop()
        return trials()

    monkeypatch.setattr(compat, "_trials", interrupted_once)
    with pytest.raises(SoftTimeLimit):
        compat.fits()
    assert compat.fits()
