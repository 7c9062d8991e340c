"""Brokers of the tests' own, which a test may stop, kill, freeze, alarm and start again.

`PrivateRabbitMQ` is a node of RabbitMQ, `PrivateCluster` three of them, `PrivateRedis` a Redis server. Each is a
context manager, leaves nothing behind, and raises `Unavailable` where its programs are not installed.
"""

from __future__ import annotations

from .cluster import PrivateCluster
from .rabbitmq import PrivateRabbitMQ
from .redis import PrivateRedis
from .server import Unavailable, asked_for, free_port

__all__ = [
    "PrivateCluster",
    "PrivateRabbitMQ",
    "PrivateRedis",
    "Unavailable",
    "asked_for",
    "free_port",
]
