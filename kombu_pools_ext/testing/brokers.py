"""The brokers of this process, by the names that URLs call them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .. import events
from ..broker.groups import connections, producers
from .broker import Broker
from .names import host_of
from .published import Published

__all__ = ["Brokers", "RealBroker", "brokers"]


class RealBroker(Exception):
    """A test has published to a real broker, which it was not to do."""


class Brokers:
    """Brokers in memory; each is made when something connects to it first."""

    def __init__(self) -> None:
        self._by_host: dict[str, Broker] = {}
        self._names: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        #: What was published to any of them, in its order.
        self.published = Published()

    def __getitem__(self, name: str) -> Broker:
        """Return the broker called *name*: the name of an alias, or the host of a URL."""
        host = host_of(name)
        found = self._by_host.get(host)
        if found is None:
            made = Broker(self._names.get(host, name))
            made.published = self.published
            # One step of the interpreter: of two threads that come first, both get the same.
            found = self._by_host.setdefault(host, made)
        return found

    def connect(self, host: str) -> Any:
        """Return the client's socket of a new connection to the broker with this host.

        :raises RealBroker: if it stands for one that tests must not use.
        """
        why = self._refused.get(host)
        if why is not None:
            raise RealBroker(why)
        return self[host].connect()

    def refuse(self, name: str, why: str) -> None:
        """Have each connection to the broker called *name* fail, and say *why*."""
        self._refused[host_of(name)] = why

    def name(self, name: str) -> None:
        """Have the broker with the host of *name* be called that."""
        self._names[host_of(name)] = name

    def add(self, broker: Broker) -> None:
        """Have *broker* stand for its name from now on."""
        broker.published = self.published
        self._by_host[host_of(broker.name)] = broker

    def clear(self) -> None:
        """Forget all brokers and what was published, and end what is connected to them."""
        # Their connections have ended, and what they know of the last outage is of no interest any more.
        for group in (producers, connections):
            for pool in group.drop_those(lambda pool: str(pool.name).startswith("test://")):
                pool.force_close_all(close_pool=False)
        brokers, self._by_host = self._by_host, {}
        for broker in brokers.values():
            broker.close()
        self.published.clear()


brokers = Brokers()


@events.after_commit.connect
def _note(ids: Iterable[str]) -> None:
    for one in ids:
        brokers.published.expect_after_commit(one)
