"""What a thread is told by others, by finalizers too."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from kombu_pools_ext.engine.mailbox import Mailbox
from tests.engine.fakes import PATIENCE, in_thread
from tests.engine.steps import ENGINE, Steps

#: More steps than a put or a get has.
ENDLESS = 100


def test_who_waits_is_woken_and_gets_all_in_order() -> None:
    mailbox: Mailbox[int] = Mailbox()
    with in_thread(lambda: mailbox.get(PATIENCE)) as first:
        mailbox.put(1)
    assert first.value == [1]
    for letter in (2, 3, 4):
        mailbox.put(letter)
    assert not mailbox.empty
    assert mailbox.get(PATIENCE) == [2, 3, 4]
    assert mailbox.empty
    assert mailbox.get(0.001) == []


@pytest.mark.parametrize("waiting", ["put", "get"])
def test_a_put_may_interrupt_a_put_or_a_get_at_any_step(waiting: str) -> None:
    for at in range(1, ENDLESS):
        mailbox: Mailbox[str] = Mailbox()
        if waiting == "get":
            mailbox.put("before")
        interrupted = {"put": partial(mailbox.put, "interrupted"), "get": partial(mailbox.get, 0.0)}
        steps = Steps(partial(mailbox.put, "within"), at, everywhere=True, folder=ENGINE)
        found = steps(interrupted[waiting]) or []
        if not steps.happened:
            break
        mailbox.put("after")
        found += mailbox.get(PATIENCE)
        # What is there when the reader has looked is found with the next.
        found += mailbox.get(0.0)
        assert sorted(found) == sorted(
            ["after", "within", "interrupted" if waiting == "put" else "before"]
        )
    assert at > 5


@pytest.mark.threads
def test_nothing_that_many_threads_put_is_lost() -> None:
    mailbox: Mailbox[tuple[int, int]] = Mailbox()
    writers = [
        threading.Thread(target=lambda n=n: [mailbox.put((n, i)) for i in range(500)])
        for n in range(8)
    ]
    for writer in writers:
        writer.start()
    found: list[tuple[int, int]] = []
    while len(found) < 8 * 500:
        found += mailbox.get(PATIENCE)
    for writer in writers:
        writer.join(PATIENCE)
    for n in range(8):
        assert [i for m, i in found if m == n] == list(range(500))
