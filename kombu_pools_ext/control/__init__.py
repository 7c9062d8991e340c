"""What the command lines do: look at pools, reset them, ping their brokers. Knows no framework."""

from __future__ import annotations
