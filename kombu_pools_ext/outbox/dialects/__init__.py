"""How the databases differ, one module each."""

from __future__ import annotations

from .dialect import Dialect
from .mysql import MySQL
from .postgresql import PostgreSQL
from .sqlite import SQLite

__all__ = ["Dialect", "dialect_of"]

_DIALECTS: dict[str, Dialect] = {
    "postgresql": PostgreSQL(),
    "mysql": MySQL(),
    "mariadb": MySQL(),
    "sqlite": SQLite(),
}


def dialect_of(vendor: str) -> Dialect:
    """Return the dialect of a database.

    :param vendor: as Django and SQLAlchemy call it.
    :raises ValueError: for one that the outbox does not know.
    """
    try:
        return _DIALECTS[vendor]
    except KeyError:
        known = ", ".join(sorted(_DIALECTS))
        raise ValueError(
            f"the outbox knows no database of the kind {vendor!r}; it can be in one of these: {known}"
        ) from None
