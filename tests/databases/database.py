"""One database, and how each library is told of it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Database", "Vendor"]

#: As Django names them: MariaDB is "mysql".
Vendor = Literal["postgresql", "mysql", "sqlite"]


@dataclass(frozen=True)
class Database:
    """A database of one *vendor*; *name* is the file's path for SQLite, which has no *port* and no *user*."""

    vendor: Vendor
    name: str
    port: int = 0
    user: str = ""

    @property
    def url(self) -> str:
        """As psycopg takes it, and many other libraries."""
        if self.vendor == "sqlite":
            return f"sqlite:///{self.name}"
        return f"{self.vendor}://{self.user}@127.0.0.1:{self.port}/{self.name}"

    @property
    def sqlalchemy_url(self) -> str:
        """As SQLAlchemy takes it, with the driver that the tests have."""
        driver = {"postgresql": "+psycopg", "mysql": "+pymysql", "sqlite": ""}[self.vendor]
        query = "?charset=utf8mb4" if self.vendor == "mysql" else ""
        return self.url.replace(self.vendor, f"{self.vendor}{driver}", 1) + query

    def django(self, **options: Any) -> dict[str, Any]:
        """As `DATABASES` of Django's settings has it. For MariaDB `PyMySQL` has to pose as mysqlclient:
        `tests.databases.pymysql_for_django`.
        """
        engine = {
            "ENGINE": f"django.db.backends.{'sqlite3' if self.vendor == 'sqlite' else self.vendor}"
        }
        if self.vendor == "sqlite":
            return {**engine, "NAME": self.name, **options}
        return {
            **engine,
            "NAME": self.name,
            "HOST": "127.0.0.1",
            "PORT": self.port,
            "USER": self.user,
            **options,
        }

    def connect(self, **options: Any) -> Any:
        """A connection of the driver, as PEP 249 has it, for which a transaction begins by itself."""
        if self.vendor == "postgresql":
            import psycopg

            return psycopg.connect(self.url, **options)
        if self.vendor == "mysql":
            import pymysql

            return pymysql.connect(
                host="127.0.0.1",
                port=self.port,
                user=self.user,
                database=self.name,
                charset="utf8mb4",
                **options,
            )
        return sqlite3.connect(self.name, **options)
