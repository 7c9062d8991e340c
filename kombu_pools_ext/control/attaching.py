"""Which pools belong to which project, and when a process begins to listen: at the first use of any pool.

If a pool was used before its project was attached, the process begins to listen as soon as that happens.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from .. import events
from ..aliases import Pools
from ..engine.weakly import snapshot
from ..settings.problems import forgets_arguments
from .options import ControlSettings, parse_control
from .performing import pools_in_order
from .project import Project
from .reach import Control
from .server import Server, forget, server_of

__all__ = ["attach", "attach_to", "begin", "detach", "serve"]

#: The servers that each set of aliases is reached through, one for each secret; they hold no aliases.
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
    """Let commands reach *pools* in this process, from the first use of one of them on; for plain Python.

    ::

        pools = configure(default="amqp://guest:guest@localhost//")
        control = attach(pools, secret=os.environ["SECRET"])
        control.ask("status")

    :param settings: as ``KOMBU_POOLS_CONTROL``; ``None`` for the defaults, ``False`` to turn it off.
    :param secret: the same in all processes of the project; whoever has it may steer them. Without one, each process of
        this user may.
    :param secret_fallbacks: secrets from before a rotation: a process takes commands that have one of them, and a
        command reaches processes that have one of them.
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
            settings = parse_control(settings, aliases, secret=secret)
        project = Project(settings, secret, name, former_secrets=secret_fallbacks)
    attach_to(project, pools)
    return Control(project)


def attach_to(project: Project, pools: Pools) -> None:
    """Let commands of *project* reach *pools*, and of no other project from now on.

    Reads and opens nothing, unless this process has used a pool already: then it begins to listen, in the background.
    """
    servers = tuple(map(server_of, project.with_former))
    if _servers.get(pools) == servers:
        return
    detach(pools)
    # The servers' own projects too, because another application of the same project may have come first.
    for one in (*project.with_former, *(server.project for server in servers)):
        one.pools.add(pools)
    _servers[pools] = servers
    weakref.finalize(pools, _gone, [weakref.ref(one) for one in servers]).atexit = False
    events.demand.connect(_demanded)


def detach(pools: Pools) -> None:
    """Let no commands reach *pools* any more; a process that has no others stops listening."""
    for server in _servers.pop(pools, ()):
        server.project.pools.discard(pools)
        if not pools_in_order(server.project):
            forget(server)


def begin(project: Project) -> None:
    """Listen in the background, from now on, for commands with any of the secrets of *project*."""
    for one in project.with_former:
        server_of(one).begin()


def serve(project: Project) -> bool:
    """Listen for the commands of *project* from now on, whether or not its pools are used.

    :returns: whether it listens: not where control is turned off, or no thread may run (uWSGI's master).
    :raises ControlError: if the socket cannot be made.
    """
    return all(server_of(one).serve() for one in project.with_former)


def _gone(servers: Iterable[weakref.ref[Server]]) -> None:
    """A set of aliases was collected. In a finalizer: ending a server takes no lock that one could interrupt."""
    for server in servers:
        one = server()
        # Only pools that still exist: the weak set may not have been updated yet.
        if one is not None and not pools_in_order(one.project):
            forget(one)


def _demanded(**what: Any) -> None:
    """A pool is about to open something: whoever's it is, this process has pools in use."""
    for server in _every():
        server.begin()


def _every() -> Iterable[Server]:
    return dict.fromkeys(chain.from_iterable(snapshot(_servers.values)))
