"""Connections to nowhere, for pools of anything."""

from __future__ import annotations

from typing import Any

__all__ = ["FakeDriver", "FakePostgres"]


class FakeDriver:
    """What our engine asks of its host, with nothing behind it."""

    def open_within(self, seconds: float) -> object:
        return self.open()

    def open(self) -> object:
        return object()

    def check(self, item: object, *, thorough: bool) -> bool:
        return True

    def is_hung_up(self, item: object) -> bool:
        return False

    def keep_alive_every(self, item: object) -> float | None:
        return None

    def keep_alive(self, item: object, *, lent: bool) -> bool:
        return True

    def may_pass(self, error: Exception) -> bool:
        return True

    def close(self, item: object, *, broken: bool, timeout: float | None = None) -> None:
        pass

    def announce_close(self, item: object) -> None:
        pass

    def abandon(self, item: object) -> None:
        pass


class _Idle:
    """What libpq knows of a connection that is well, and in no transaction."""

    transaction_status = 0


class FakePostgres:
    """As much of a connection as psycopg_pool and SQLAlchemy touch."""

    _pool: Any = None
    _expire_at = _created_at = 0.0
    closed = False
    autocommit = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.pgconn = _Idle()

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> FakePostgres:
        return cls()

    def close(self) -> None:
        self.closed = True

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass
