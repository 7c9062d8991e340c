"""What a thread is told by others, by finalizers too."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from kombu_pools_ext.engine.reentrant_queue import ReentrantQueue
from tests.engine.fakes import PATIENCE, in_thread
from tests.engine.steps import ENGINE, Steps

#: More steps than a put or a get has.
ENDLESS = 100


def test_who_waits_is_woken_and_gets_all_in_order() -> None:
    queue: ReentrantQueue[int] = ReentrantQueue()
    with in_thread(lambda: queue.get(PATIENCE)) as first:
        queue.put(1)
    assert first.value == [1]
    for item in (2, 3, 4):
        queue.put(item)
    assert not queue.empty
    assert queue.get(PATIENCE) == [2, 3, 4]
    assert queue.empty
    assert queue.get(0.001) == []


@pytest.mark.parametrize("waiting", ["put", "get"])
def test_a_put_may_interrupt_a_put_or_a_get_at_any_step(waiting: str) -> None:
    for at in range(1, ENDLESS):
        queue: ReentrantQueue[str] = ReentrantQueue()
        if waiting == "get":
            queue.put("before")
        interrupted = {"put": partial(queue.put, "interrupted"), "get": partial(queue.get, 0.0)}
        steps = Steps(partial(queue.put, "within"), at, everywhere=True, folder=ENGINE)
        found = steps(interrupted[waiting]) or []
        if not steps.happened:
            break
        queue.put("after")
        found += queue.get(PATIENCE)
        # What is there when the reader has looked is found with the next.
        found += queue.get(0.0)
        assert sorted(found) == sorted(
            ["after", "within", "interrupted" if waiting == "put" else "before"]
        )
    assert at > 5


@pytest.mark.threads
def test_nothing_that_many_threads_put_is_lost() -> None:
    queue: ReentrantQueue[tuple[int, int]] = ReentrantQueue()
    writers = [
        threading.Thread(target=lambda n=n: [queue.put((n, i)) for i in range(500)])
        for n in range(8)
    ]
    for writer in writers:
        writer.start()
    found: list[tuple[int, int]] = []
    while len(found) < 8 * 500:
        found += queue.get(PATIENCE)
    for writer in writers:
        writer.join(PATIENCE)
    for n in range(8):
        assert [i for m, i in found if m == n] == list(range(500))
