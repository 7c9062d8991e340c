"""The brokers of this process, by the names that URLs call them."""

from __future__ import annotations

from .broker import Broker

__all__ = ["Brokers", "brokers"]


class Brokers:
    """Brokers in memory; each is made when something connects to it first."""

    def __init__(self) -> None:
        self._by_name: dict[str, Broker] = {}

    def __getitem__(self, name: str) -> Broker:
        # One step of the interpreter: of two threads that come first, both get the same.
        return self._by_name.get(name) or self._by_name.setdefault(name, Broker(name))

    def add(self, broker: Broker) -> None:
        """Have *broker* stand for its name from now on."""
        self._by_name[broker.name] = broker

    def clear(self) -> None:
        """Forget all brokers, and end what is connected to them."""
        brokers, self._by_name = self._by_name, {}
        for broker in brokers.values():
            broker.close()


brokers = Brokers()
