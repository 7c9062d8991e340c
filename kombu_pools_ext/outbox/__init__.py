"""The outbox: messages as rows of the application's transaction, and the relay that brings them to the broker.

It imports no framework and no driver. ``docs/explanation/outbox.md`` says how it works.
"""

from __future__ import annotations

from .database import Cursor, Database, Listener
from .inbox import claim_once, sweep_inbox
from .numbers import AliasNumbers
from .relay import Relay
from .relay_numbers import RelayNumbers
from .relay_settings import RelaySettings
from .schema_errors import SchemaMismatch
from .states import State
from .store import Filter, Outbox, write

__all__ = [
    "AliasNumbers",
    "Cursor",
    "Database",
    "Filter",
    "Listener",
    "Outbox",
    "Relay",
    "RelayNumbers",
    "RelaySettings",
    "SchemaMismatch",
    "State",
    "claim_once",
    "sweep_inbox",
    "write",
]
