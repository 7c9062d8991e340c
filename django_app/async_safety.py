"""Calls that block are refused in a thread whose event loop is running, as Django refuses its own."""

from __future__ import annotations

import os

from django.core.exceptions import SynchronousOnlyOperation

from kombu_pools_ext.broker.event_loops import allowed, event_loop

__all__ = ["refuse_in_event_loop"]


def _is_allowed() -> bool:
    """Return whether Django's environment variable allows everything."""
    return bool(os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"))


def refuse_in_event_loop(call: str, instead: str) -> None:
    """Refuse to block the event loop that is running in this thread.

    :param call: what was called, as in ``"publish()"``.
    :param instead: what to do instead.
    :raises SynchronousOnlyOperation: if an event loop is running, and ``DJANGO_ALLOW_ASYNC_UNSAFE`` is not set.
    """
    if event_loop() is not None and not _is_allowed():
        raise SynchronousOnlyOperation(
            f"{call} would block the event loop of this thread until the broker has answered; {instead}"
        )


# So that the pools do not warn of what Django allows.
allowed.append(_is_allowed)
