"""What a process needs to exchange messages over a broker: settings, a connection, and a signer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from ...broker.credentials import Credentials
from ...broker.driver import ConnectionDriver
from ...errors import ControlError
from ...settings import PoolSettings, SettingsError
from ..options import SHORTEST_KEY, why_unsupported
from ..project import Project
from .mailbox import PREFIX, Mailbox
from .rabbitmq_mailbox import RabbitMailbox
from .redis_mailbox import RedisMailbox
from .signing import Signer

__all__ = ["broadcast_settings", "open_mailbox", "signer_for"]

#: The name of the connection in the broker's own tools.
CONNECTION_NAME = f"{PREFIX}-control"


def broadcast_settings(project: Project) -> PoolSettings:
    """Return the settings of the alias that BROADCAST names.

    :raises ControlError: if it is not configured, or its broker cannot carry commands.
    """
    alias = project.settings.broadcast
    for pools in project.pools_in_order():
        with contextlib.suppress(SettingsError):
            if alias is not None and alias in pools.settings:
                settings = pools.settings[alias]
                why = why_unsupported(settings) or settings.missing_driver()
                if why is not None:
                    raise ControlError(f"BROADCAST: {why}")
                return settings
    raise ControlError(f"BROADCAST names {alias!r}, and no pool is configured under that alias")


def signer_for(project: Project, scope: str, clock: Callable[[], float]) -> Signer:
    """Return the signer of a project's messages within *scope*.

    :raises ControlError: if the project has no secret, or one that is too short.
    """
    key = project.key("broadcast")
    if key is None or project.secret_length < SHORTEST_KEY:
        raise ControlError(
            f"BROADCAST: commands from other machines need a secret of at least {SHORTEST_KEY} characters: "
            "set KEY, or the framework's SECRET_KEY"
        )
    return Signer(key, scope, clock)


def open_mailbox(settings: PoolSettings, project: str, seconds: float | None = None) -> Mailbox:
    """Connect to the broker of *settings* outside its pool, with the pool's credentials and TLS.

    :param project: the project's name.
    :param seconds: the most seconds for connecting.
    :raises Exception: the transport's error, if the broker cannot be reached.
    """
    own = replace(
        settings,
        confirm=False,
        connection_name=CONNECTION_NAME,
        connect_timeout=settings.connect_timeout
        if seconds is None
        else min(settings.connect_timeout, seconds),
    )
    driver = ConnectionDriver(own.connection, credentials=Credentials.of(own))
    connection = driver.open()
    if settings.is_amqp:
        return RabbitMailbox(driver, connection, project)
    return RedisMailbox(driver, connection, project)
