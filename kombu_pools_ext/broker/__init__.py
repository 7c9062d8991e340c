"""What the engine holds here: connections of kombu, and producers on them."""

from __future__ import annotations
