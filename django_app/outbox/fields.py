"""Fields of text that compare exactly on every database."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["ExactCharField", "ExactTextField"]

#: Of MySQL and MariaDB, whose default ignores case and accents, and may not hold all characters.
COLLATION = "utf8mb4_bin"


def _exact(parameters: Any, connection: BaseDatabaseWrapper) -> Any:
    # A field's db_collation would be that of all databases.
    parameters["collation"] = COLLATION if connection.vendor == "mysql" else None
    return parameters


class ExactCharField(models.CharField):  # type: ignore[type-arg]  # only the stubs have parameters
    """Text of a bounded length, of which "a" and "A" are two."""

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        """Return the type of the column, and its collation."""
        return _exact(super().db_parameters(connection), connection)


class ExactTextField(models.TextField):  # type: ignore[type-arg]
    """Text of any length, of which "a" and "A" are two."""

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        """Return the type of the column, and its collation."""
        return _exact(super().db_parameters(connection), connection)
