"""The connection of a producer that takes a lease only if something needs one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombu.connection import Connection

__all__ = ["DeferredConnection"]

#: What is answered without a lease, because it depends on the settings alone: Celery asks for it at each task.
SETTINGS_ALONE = frozenset(
    {
        "_reraise_as_library_errors",
        "as_uri",
        "channel_errors",
        "connection_errors",
        "host",
        "hostname",
        "is_evented",
        "port",
        "qos_semantics_matches_spec",
        "recoverable_channel_errors",
        "recoverable_connection_errors",
        "supports_exchange_type",
        "supports_heartbeats",
        "transport_cls",
        "transport_options",
        "userid",
        "virtual_host",
    }
)

_own = object.__getattribute__


class DeferredConnection(Connection):
    """Stands for the connection of a producer: all but the settings is that of a lease, which is taken then.

    :param template: a connection with the same settings, which is never opened.
    :param lend: returns the lent connection.
    """

    def __init__(self, template: Connection, lend: Callable[[], Any]) -> None:
        # Not kombu's __init__, because this has no state of a connection.
        object.__setattr__(self, "_template", template)
        object.__setattr__(self, "_lend", lend)

    def __getattribute__(self, name: str) -> Any:
        if name in SETTINGS_ALONE:
            return getattr(_own(self, "_template"), name)
        if name.startswith("__"):
            return _own(self, name)
        return getattr(_own(self, "_lend")(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_own(self, "_lend")(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_own(self, "_lend")(), name)

    def __enter__(self) -> Any:
        return _own(self, "_lend")().__enter__()

    def __exit__(self, *exc_info: Any) -> None:
        _own(self, "_lend")().__exit__(*exc_info)

    def __eqhash__(self) -> Any:
        return _own(self, "_template").__eqhash__()

    def __reduce__(self) -> Any:
        return _own(self, "_template").__reduce__()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {_own(self, '_template').as_uri()}>"
