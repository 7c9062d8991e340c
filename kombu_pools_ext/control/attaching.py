"""Attach pools to a project, so that commands reach them.

The process begins to listen for commands at the first use of any pool, or at once if a pool was used before.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from .. import events
from ..aliases import Pools
from ..engine.weakrefs import snapshot
from ..settings.problems import forgets_arguments
from .client import Control
from .options import ControlSettings, parse_control
from .project import Project
from .server import Server, forget, server_of

__all__ = ["attach", "attach_to", "begin", "detach", "serve"]

#: The servers of each set of aliases, one for each secret of its project. A server holds no reference to the aliases.
_servers: weakref.WeakKeyDictionary[Pools, tuple[Server, ...]] = weakref.WeakKeyDictionary()


@forgets_arguments
def attach(
    pools: Pools,
    settings: Mapping[str, Any] | ControlSettings | Project | bool | None = None,
    *,
    secret: str | bytes | None = None,
    secret_fallbacks: Iterable[str | bytes] = (),
    name: str = "",
) -> Control:
    """Let commands reach *pools* in this process, from the first use of a pool on. For plain Python.

    ::

        pools = configure(default="amqp://guest:guest@localhost//")
        control = attach(pools, secret=os.environ["SECRET"])
        control.ask("status")

    :param settings: as in ``KOMBU_POOLS_CONTROL``; ``None`` for the defaults, ``False`` to turn control off.
    :param secret: the same in all processes of the project; with it, commands can be sent to them. Without a secret,
        all processes of this user can send commands.
    :param secret_fallbacks: secrets from before a rotation. A process accepts commands with one of them, and a command
        reaches processes with one of them.
    :param name: distinguishes the project from others of this user if there is no secret.
    :returns: sends commands to all processes of the project.
    :raises SettingsError: with everything that is wrong in *settings*.
    """
    if isinstance(settings, Project):
        project = settings
    else:
        if not isinstance(settings, ControlSettings):
            # The aliases are read only if a setting may name one.
            aliases = tuple(pools.settings) if isinstance(settings, Mapping) else ()
            settings = parse_control(settings, aliases, secret=secret)
        project = Project(settings, secret, name, former_secrets=secret_fallbacks)
    attach_to(project, pools)
    return Control(project)


def attach_to(project: Project, pools: Pools) -> None:
    """Let commands of *project*, and of no other project, reach *pools*.

    Reads and opens nothing, unless this process has used a pool already. Then it begins to listen in the background.
    """
    servers = tuple(map(server_of, project.with_former))
    if _servers.get(pools) == servers:
        return
    detach(pools)
    # The servers have projects of their own if another application of the same project came first.
    for one in (*project.with_former, *(server.project for server in servers)):
        one.pools.add(pools)
    _servers[pools] = servers
    weakref.finalize(pools, _on_collected, [weakref.ref(one) for one in servers]).atexit = False
    events.demand.connect(_on_demand)


def detach(pools: Pools) -> None:
    """Stop letting commands reach *pools*. If the process has no other pools, it stops listening."""
    for server in _servers.pop(pools, ()):
        server.project.pools.discard(pools)
        if not server.project.pools_in_order():
            forget(server)


def begin(project: Project) -> None:
    """Listen in the background for commands with any of the secrets of *project*."""
    for one in project.with_former:
        server_of(one).begin()


def serve(project: Project) -> bool:
    """Listen for the commands of *project* from now on, whether or not its pools are used.

    :returns: whether it listens; it does not if control is turned off, or no thread may run (uWSGI's master).
    :raises ControlError: if the socket cannot be made.
    """
    return all(server_of(one).serve() for one in project.with_former)


def _on_collected(servers: Iterable[weakref.ref[Server]]) -> None:
    """Stop the servers of aliases that were collected. Runs in a finalizer, so it must not wait for a lock."""
    for server in servers:
        one = server()
        # Counts the pools that are still alive, because the weak set may not have been updated yet.
        if one is not None and not one.project.pools_in_order():
            forget(one)


def _on_demand(**what: Any) -> None:
    """Begin to listen, because a pool of this process is used for the first time."""
    for server in _all_servers():
        server.begin()


def _all_servers() -> Iterable[Server]:
    return dict.fromkeys(chain.from_iterable(snapshot(_servers.values)))
