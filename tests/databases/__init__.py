"""Databases of the tests' own, which a test may stop, kill, freeze and start again.

`PrivatePostgreSQL` and `PrivateMariaDB` are servers: context managers that leave nothing behind, and raise
`Unavailable` where their programs are not installed. `Database` is one database, on one of them or in a file of SQLite.
"""

from __future__ import annotations

from ..brokers import Unavailable
from .database import Database
from .mariadb import PrivateMariaDB
from .postgresql import PrivatePostgreSQL

__all__ = ["Database", "PrivateMariaDB", "PrivatePostgreSQL", "Unavailable"]
