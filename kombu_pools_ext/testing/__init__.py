"""A broker in memory that answers like RabbitMQ, for tests of what an application publishes.

``docs/explanation/test-broker.md`` tells how it works. No application imports it.
"""

from __future__ import annotations

from .broker import Broker
from .brokers import brokers
from .clock import Clock, ManualClock, SystemClock

__all__ = ["Broker", "Clock", "ManualClock", "SystemClock", "brokers"]
