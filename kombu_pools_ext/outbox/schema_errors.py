"""The error of an outbox whose tables are another version's."""

from __future__ import annotations

from kombu.exceptions import KombuError

__all__ = ["SchemaMismatch"]


class SchemaMismatch(KombuError):
    """The tables of the outbox are missing, or are those of another version. The text says which, and what to do."""
