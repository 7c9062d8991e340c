"""A broker in memory that answers like RabbitMQ, for tests of what an application publishes.

``docs/explanation/test-broker.md`` tells how it works. No application imports it.
"""

from __future__ import annotations

from .broker import Broker
from .brokers import RealBroker, brokers
from .cases import PublishedMixin
from .clock import Clock, ManualClock, SystemClock
from .faults import Fault
from .guard import guard_brokers
from .publication import Publication, Task
from .published import Published
from .swap import swapped_brokers

__all__ = [
    "Broker",
    "Clock",
    "Fault",
    "ManualClock",
    "Publication",
    "Published",
    "PublishedMixin",
    "RealBroker",
    "SystemClock",
    "Task",
    "brokers",
    "guard_brokers",
    "swapped_brokers",
]
