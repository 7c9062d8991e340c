"""Which pools belong to which project, and when a process begins to listen: at the first use of any pool.

Where a pool was used before there was a project, the process begins as soon as there is one.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from .. import events
from ..aliases import Pools
from .options import ControlSettings, parse_control
from .performing import pools_in_order
from .project import Project
from .reach import Control
from .server import Server, forget, server_of

__all__ = ["attach", "attach_to", "detach", "serve"]

#: The server that each set of aliases is reached through; it holds the server, and the server holds no aliases.
_servers: weakref.WeakKeyDictionary[Pools, Server] = weakref.WeakKeyDictionary()


def attach(
    pools: Pools,
    settings: Mapping[str, Any] | ControlSettings | Project | bool | None = None,
    *,
    secret: str | bytes | None = None,
    name: str = "",
) -> Control:
    """Let commands reach *pools* in this process, from the first use of one of them on; for plain Python.

    ::

        pools = configure(default="amqp://guest:guest@localhost//")
        control = attach(pools, secret=os.environ["SECRET"])
        control.ask("status")

    :param settings: as ``KOMBU_POOLS_CONTROL``; ``None`` for the defaults, ``False`` to turn it off.
    :param secret: the same in all processes of the project: who has it may steer them. Without one, each process of
        this user may.
    :param name: what tells the project from others of this user where there is no secret.
    :returns: what reaches all processes of the project.
    :raises SettingsError: with everything that is wrong in *settings*.
    """
    if isinstance(settings, Project):
        project = settings
    else:
        if not isinstance(settings, ControlSettings):
            # The names are asked for only where one is named.
            aliases = tuple(pools.settings) if isinstance(settings, Mapping) else ()
            settings = parse_control(settings, aliases, secret=bool(secret))
        project = Project(settings, secret, name)
    attach_to(project, pools)
    return Control(project)


def attach_to(project: Project, pools: Pools) -> None:
    """Let commands of *project* reach *pools*, and of no other project from now on.

    Reads and opens nothing, unless this process has used a pool before: then it begins to listen, in the background.
    """
    server = server_of(project)
    if _servers.get(pools) is server:
        return
    detach(pools)
    # Not *project* itself: another application of the same project may have come first.
    server.project.pools.add(pools)
    project.pools.add(pools)
    _servers[pools] = server
    weakref.finalize(pools, _gone, weakref.ref(server)).atexit = False
    events.demand.connect(_demanded)
    # After that: what is used in this moment is noticed by one of the two.
    if events.demand.was_sent:
        server.begin()


def detach(pools: Pools) -> None:
    """Let no commands reach *pools* any more; a process that has no others stops listening."""
    server = _servers.pop(pools, None)
    if server is not None:
        server.project.pools.discard(pools)
        if not pools_in_order(server.project):
            forget(server)


def serve(project: Project) -> bool:
    """Listen for the commands of *project* from now on, whether or not its pools are used.

    :returns: whether it listens: not where control is turned off, or no thread may run (uWSGI's master).
    :raises ControlError: if the socket cannot be made.
    """
    return server_of(project).serve()


def _gone(server: weakref.ref[Server]) -> None:
    """A set of aliases was collected. In a finalizer: ending a server takes no lock that one could interrupt."""
    one = server()
    # Those that live: the set itself may not have heard yet.
    if one is not None and not pools_in_order(one.project):
        forget(one)


def _demanded(**what: Any) -> None:
    """A pool is about to open something: whoever's it is, this process has pools in use."""
    for server in _every():
        server.begin()


def _every() -> list[Server]:
    while True:
        try:
            return list(dict.fromkeys(_servers.values()))
        except RuntimeError:  # pragma: no cover - another thread has just added one
            continue
