"""``submit`` and ``apublish`` over a shared connection: order, outcomes, cancellations, and what needs a lease."""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

import kombu
import pytest
from amqp.exceptions import NotFound

from kombu_pools_ext.errors import (
    BrokerBlocked,
    ConnectTimeout,
    PublishNacked,
    PublishReturned,
    PublishUnknown,
)
from tests.broker.common import PATIENCE, eventually
from tests.broker.conftest import Inbox
from tests.brokers import PrivateRabbitMQ
from tests.publisher.conftest import Fanned, MakePools

MakeInbox = Callable[[str], Inbox]


def done(futures: list[Any]) -> list[BaseException | None]:
    """Wait for the outcomes, and return the errors."""
    assert len(wait(futures, PATIENCE).done) == len(futures)
    return [future.exception() for future in futures]


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


# -- order -------------------------------------------------------------------------------------------------------------


def test_what_a_thread_submits_to_an_exchange_arrives_in_its_order(
    amqp_url: str, shared: MakePools, fanned: Callable[..., Fanned]
) -> None:
    to, pools = fanned(amqp_url, 2), shared(amqp_url, LIMIT=2)
    futures: list[Any] = []

    def submit(thread: int) -> None:
        for number in range(200):
            exchange = to.names[number % 2]
            futures.append(pools.submit([thread, number], "k", exchange=exchange))

    threads = [threading.Thread(target=submit, args=(thread,)) for thread in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(PATIENCE)
    assert done(futures) == [None] * 800
    for start, bodies in enumerate(to.bodies().values()):
        for thread in range(4):
            assert [n for t, n in bodies if t == thread] == list(range(start, 200, 2))
    assert pools.connections["default"].stats().opened == 1


def test_a_message_that_needs_a_lease_keeps_its_place(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    box, pools = inbox(amqp_url), shared(amqp_url)
    large = "x" * 200_000
    bodies: list[Any] = [0, 1, large, 2, 3, large, large, 4, 5, 6]
    assert done([pools.submit(one, box.name) for one in bodies]) == [None] * len(bodies)
    assert box.bodies(len(bodies)) == bodies


def test_what_comes_after_a_declaration_waits_for_it(
    amqp_url: str, shared: MakePools, queue: str
) -> None:
    pools, declared = shared(amqp_url), kombu.Queue(queue, durable=False)
    futures = [
        pools.submit(number, queue, declare=[declared] if number % 3 == 0 else None)
        for number in range(30)
    ]
    assert done(futures) == [None] * 30
    with kombu.Connection(amqp_url) as connection:
        with connection.SimpleQueue(queue, queue_opts={"durable": False}) as box:
            assert [box.get(timeout=PATIENCE).payload for _ in range(30)] == list(range(30))
        # It is gone: the broker returns the next one, and a lease declares it again.
        kombu.Queue(queue)(connection.default_channel).delete()
    assert done([pools.submit("again", queue, declare=[declared])]) == [None]
    with kombu.Connection(amqp_url) as connection:
        assert kombu.Queue(queue)(connection.default_channel).delete() == 1


# -- outcomes ----------------------------------------------------------------------------------------------------------


def test_a_returned_message_a_missing_exchange_and_a_nack(
    amqp_url: str, shared: MakePools, queue: str
) -> None:
    full = kombu.Queue(
        queue,
        durable=False,
        queue_arguments={"x-max-length": 0, "x-overflow": "reject-publish"},
    )
    pools = shared(amqp_url)
    with kombu.Connection(amqp_url) as connection:
        full(connection.default_channel).declare()
        try:
            returned = pools.submit("body", f"{queue}.nowhere")
            missing = pools.submit("body", "k", exchange=f"{queue}.missing")
            nacked = pools.submit("body", queue, confirm_timeout=1.0)
            errors = done([returned, missing, nacked])
            kinds = (PublishReturned, NotFound, PublishNacked)
            assert all(map(isinstance, errors, kinds)), errors

            async def publish() -> list[Any]:
                return await asyncio.gather(
                    pools.apublish("body", f"{queue}.nowhere"),
                    pools.apublish("body", "k", exchange=f"{queue}.missing"),
                    pools.apublish("body", queue, confirm_timeout=1.0),
                    return_exceptions=True,
                )

            errors = asyncio.run(publish())
            assert all(map(isinstance, errors, kinds)), errors
        finally:
            full(connection.default_channel).delete()


@pytest.mark.threads
def test_hundreds_of_coroutines_in_two_loops_beside_threads(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    box, pools = inbox(amqp_url), shared(amqp_url, LIMIT=2)
    reported: list[Any] = []
    failed: list[BaseException] = []

    async def task(loop: int, number: int) -> None:
        for step in range(4):
            await pools.apublish(["loop", loop, number, step], box.name)
            reported.append(["loop", loop, number, step])

    async def tasks(loop: int) -> None:
        await asyncio.gather(*(task(loop, number) for number in range(100)))

    def work(number: int) -> None:
        try:
            if number < 2:
                asyncio.run(tasks(number))
            else:
                for step in range(20):
                    pools.publish(["thread", number, 0, step], box.name)
                    reported.append(["thread", number, 0, step])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(18)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(2 * PATIENCE)
    assert failed == []
    assert len(reported) == 2 * 100 * 4 + 16 * 20
    bodies = box.bodies(len(reported))
    assert sorted(bodies) == sorted(reported)
    for number in (0, 50, 99):
        mine = [step for kind, loop, n, step in bodies if (kind, loop, n) == ("loop", 1, number)]
        assert mine == [0, 1, 2, 3]
    assert pools.connections["default"].stats().opened == 1


# -- time-outs ---------------------------------------------------------------------------------------------------------


def test_coroutines_in_an_outage_are_told_of_it_and_for_how_long_they_waited(
    shared: MakePools, nowhere: int
) -> None:
    pools = shared(f"amqp://127.0.0.1:{nowhere}//")

    async def publish() -> list[Any]:
        # Longer than the reading thread waits for a connection at a time.
        calls = [pools.apublish("body", "q", acquire_timeout=1.5) for _ in range(20)]
        return await asyncio.gather(*calls, return_exceptions=True)

    for error in asyncio.run(publish()):
        assert type(error) is ConnectTimeout
        assert re.search(r"no connection was ready within (1\.[4-9]|[2-9])", str(error))
        assert "was not sent" in notes(error)


@pytest.mark.slow
def test_coroutines_are_told_that_the_broker_is_blocked(
    private_rabbitmq: PrivateRabbitMQ, shared: MakePools, inbox: MakeInbox
) -> None:
    url = private_rabbitmq.url
    box, pools = inbox(url), shared(url, CONFIRM_TIMEOUT=4.0)
    pools.publish("warm", box.name)

    async def publish() -> list[Any]:
        calls = [pools.apublish(n, box.name, acquire_timeout=1.0) for n in range(20)]
        return await asyncio.gather(*calls, return_exceptions=True)

    with private_rabbitmq.memory_alarm():
        # The first one hears of it.
        first = pools.submit("first", box.name)
        eventually(lambda: pools.producers["default"].blocked)
        errors = asyncio.run(publish())
        assert [type(one) for one in errors] == [BrokerBlocked] * 20
        assert isinstance(first.exception(PATIENCE), PublishUnknown)


# -- cancellation ------------------------------------------------------------------------------------------------------


@pytest.mark.threads
def test_a_thousand_cancellations_at_random_moments(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    box, pools = inbox(amqp_url), shared(amqp_url, IN_FLIGHT=20)
    chance = random.Random(31)
    published: set[int] = set()
    not_sent: set[int] = set()
    maybe: set[int] = set()

    async def one(number: int) -> None:
        try:
            await pools.apublish(number, box.name, acquire_timeout=PATIENCE)
        except asyncio.CancelledError as error:
            told = notes(error)
            assert told.count("message ") == 1, told
            if "was not sent" in told:
                not_sent.add(number)
            elif "was published" in told:
                published.add(number)
            else:
                assert "may be in the broker" in told
                maybe.add(number)
            raise
        published.add(number)

    async def all_of_them() -> None:
        tasks = [asyncio.ensure_future(one(number)) for number in range(2000)]
        for task in chance.sample(tasks, 1000):
            for _ in range(chance.randrange(2)):
                await asyncio.sleep(0.0003 * chance.random())
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(all_of_them())
    pools.drain(PATIENCE)
    never_begun = set(range(2000)) - published - not_sent - maybe
    assert not published & not_sent
    bodies = box.bodies(len(published))
    assert len(bodies) == len(set(bodies))
    assert published <= set(bodies) <= published | maybe
    assert not set(bodies) & (not_sent | never_begun)


def test_a_future_can_be_cancelled_until_its_message_is_written(
    amqp_url: str, shared: MakePools, inbox: MakeInbox
) -> None:
    box, pools = inbox(amqp_url), shared(amqp_url)
    pools.suspend(mode="wait")
    first, second = (pools.submit(n, box.name, acquire_timeout=PATIENCE) for n in (1, 2))
    assert second.cancel()
    assert not first.done()
    pools.resume()
    assert first.result(PATIENCE) is None
    assert not first.cancel()
    pools.drain(PATIENCE)
    assert box.bodies(1) == [1]


# -- the end of the process ------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from kombu_pools_ext import Pools

url, queue = sys.argv[1:]
pools = Pools(default={"URL": url, "PUBLISH_OVER": "shared"})
for number in range(500):
    pools.submit(number, queue)
print("ends", flush=True)
"""


def test_what_was_submitted_is_published_when_the_process_ends(
    amqp_url: str, inbox: MakeInbox
) -> None:
    box = inbox(amqp_url)
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", PROGRAM, amqp_url, box.name],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("ends\n", "", 0)
    assert box.bodies(500) == list(range(500))
