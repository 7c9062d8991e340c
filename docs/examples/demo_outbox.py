"""The outbox: orders are taken while the broker is away, and a relay brings them there when it is back."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from demo_inbox import Trouble
from demo_servers import Application

from kombu_pools_ext import Pools
from kombu_pools_ext.outbox import Relay, RelaySettings
from kombu_pools_ext.outbox.dbapi import DbApiDatabase
from kombu_pools_ext.testing import brokers

__all__ = ["take_orders_while_the_broker_is_away"]

INVOICES = 20


def take_orders_while_the_broker_is_away(
    django: Application, folder: Path, left: Callable[[], float], say: Callable[[str], object]
) -> None:
    """Show it, with a broker in memory that can be made to be away.

    :param left: the seconds that there are left.
    :raises Trouble: if a message is lost, comes twice, or comes out of its order.
    """
    django.run("manage.py", "migrate", "--verbosity", "0", timeout=left())
    for number in range(1, INVOICES + 1):
        django.post(number, timeout=left(), page="invoices")
    typed, output = django.command("outbox", "status", timeout=left())
    say(f"\n$ {typed}\n{output}\n")

    # In production this is `manage.py kombu_pools relay`. Here it is a thread, beside the broker in memory.
    logging.getLogger("kombu_pools_ext").addHandler(logging.NullHandler())
    pools = Pools(invoices="test://demo")
    path = folder / "shop.sqlite3"
    database = DbApiDatabase(lambda: sqlite3.connect(path), "sqlite", (sqlite3.Error,))
    relay = Relay(pools, database, RelaySettings(poll=0.1))
    thread = threading.Thread(target=relay.run, daemon=True)
    broker = brokers["demo"]
    arrived: list[int] = []
    try:
        with broker.down():
            thread.start()
            wait_until(lambda: relay.numbers.away > 0, left)
            say("the relay runs, and the broker is away: all wait")
        wait_until(lambda: relay.numbers.delivered == INVOICES, left)
        arrived = [one.body["order"] for one in broker.published.to("invoices")]
    finally:
        relay.stop()
        thread.join(left())
        pools.reset()
        brokers.clear()
    say(f"the broker is back: {', '.join(map(str, arrived))}")
    if arrived != list(range(1, INVOICES + 1)):
        raise Trouble(f"{INVOICES} invoices were taken, in their order, and these arrived")


def wait_until(condition: Callable[[], bool], left: Callable[[], float]) -> None:
    ends = time.monotonic() + left()
    while not condition():
        if time.monotonic() > ends:
            raise Trouble("the relay is not done in time")
        time.sleep(0.01)
