"""PyMySQL in the place of mysqlclient, which is the only driver of MariaDB that Django knows."""

from __future__ import annotations

import pymysql

__all__ = ["install"]


def install() -> None:
    """Let PyMySQL be imported as MySQLdb, with the version of a mysqlclient that every Django takes."""
    pymysql.version_info = (2, 2, 7, "final", 0)  # type: ignore[assignment]
    pymysql.install_as_MySQLdb()
