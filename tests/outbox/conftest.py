"""An outbox in a database of each vendor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kombu_pools_ext import Pools
from kombu_pools_ext.outbox import Outbox
from tests.databases import Database
from tests.outbox.common import NOWHERE, make_tables, outbox_in


@pytest.fixture
def pools() -> Pools:
    return Pools(default={"URL": NOWHERE}, other={"URL": NOWHERE})


@pytest.fixture
def tables(database: Database) -> Database:
    make_tables(database)
    return database


@pytest.fixture
def outbox(tables: Database) -> Iterator[Outbox]:
    found = outbox_in(tables)
    yield found
    found.database.close()


@pytest.fixture
def another(tables: Database) -> Iterator[Outbox]:
    """The same outbox over another connection."""
    found = outbox_in(tables)
    yield found
    found.database.close()
