"""Messages in the transactions of SQLAlchemy: published after the commit, or rows of the outbox.

::

    from kombu_pools_ext.contrib.sqlalchemy import publish_on_commit

    with Session(engine) as session, session.begin():
        session.add(order)
        publish_on_commit(session, {"order": order.number}, "orders", outbox=True)

It needs SQLAlchemy 2.0 or newer: ``pip install kombu-pools-ext[sqlalchemy]``.
"""

from __future__ import annotations

from .database import EngineDatabase
from .publishing import claim, publish_on_commit
from .tables import add_tables, metadata

__all__ = ["EngineDatabase", "add_tables", "claim", "metadata", "publish_on_commit"]
