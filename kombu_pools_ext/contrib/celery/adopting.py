"""Have a Celery application publish over the pools of an alias."""

from __future__ import annotations

from collections.abc import Callable
from pickle import PicklingError
from typing import Any

import celery
from celery.app.amqp import AMQP

from ...aliases import Pools, configured_pools
from . import beat
from .adopted_amqp import AdoptedAMQP
from .adoption import Adoption
from .errors import CannotAdopt

__all__ = ["adopt", "adopt_unchecked", "adoption_of", "wrong_with"]


def adopt(
    app: celery.Celery,
    using: str = "default",
    *,
    pools: Pools | Callable[[], Pools] | None = None,
) -> None:
    """Have *app* publish over the pools of an alias from now on: tasks, events, remote control, results over rpc, beat.

    It may be called before or after the application is configured or finalized; best is before the first task is sent,
    because what was sent before has opened a pool of Celery's own. Nothing is opened. If the application is configured,
    its broker is compared with that of the alias now, and else before the first task is sent, or its worker starts.

    :param using: the alias.
    :param pools: the pools that have the alias, or a function that returns them, by default those of
        :func:`kombu_pools_ext.configure`. In a process that is spawned, only a function finds them again.
    :raises CannotAdopt: if the broker of *app* is not that of the alias; if it was adopted with another alias; or if
        its class, or this release of Celery, does not have its pools where they are expected. The same adoption again
        does nothing.
    :raises UnknownAlias: if *app* is configured, and the alias is not.
    """
    adopt_unchecked(app, using, pools, check=True)


def adopt_unchecked(
    app: celery.Celery,
    using: str,
    pools: Pools | Callable[[], Pools] | None,
    *,
    check: bool = False,
) -> None:
    """:func:`adopt`; but unless *check* is true, the brokers are compared at the first use only."""
    app = _checked(app)
    find_pools = _finder_of(pools)
    made = app.amqp_cls
    if isinstance(made, AdoptedAMQP):
        if made.using != using or made.find_pools != find_pools:
            raise CannotAdopt(
                f"the Celery app {app.main!r} publishes over the alias {made.using!r} already, and cannot publish over "
                f"{using!r} as well; adopt it once"
            )
        return
    amqp_cls = AdoptedAMQP(made, using, find_pools)
    adoption = Adoption(app, using, find_pools)
    amqp_cls.adoption = adoption
    own_class = amqp_cls.class_for(app)
    if check and app.configured:
        adoption.check()
    app.amqp_cls = amqp_cls
    _replace_what_is_made(app, own_class)
    adoption.put_in_place()
    # Celery does this when it makes its pool.
    app._ensure_after_fork()
    app.on_after_fork.connect(_put_in_place, weak=False, dispatch_uid="kombu-pools")
    beat.listen()


def adoption_of(app: celery.Celery) -> str | None:
    """Return the alias that *app* publishes over; ``None`` if it was not adopted."""
    amqp_cls = app.amqp_cls
    return amqp_cls.using if isinstance(amqp_cls, AdoptedAMQP) else None


def wrong_with(app: celery.Celery) -> str | None:
    """Return why tasks of *app*, which was adopted, would not reach its workers, and what to do. Nothing is opened.

    :returns: ``None`` if they would, or if *app* was not adopted.
    """
    amqp_cls = app.amqp_cls
    return amqp_cls.join(app).difference if isinstance(amqp_cls, AdoptedAMQP) else None


def _put_in_place(*, sender: Any, **kwargs: Any) -> None:
    """Give an application its pools again: Celery takes them away in a forked child, because its own do not fork."""
    amqp_cls = sender.amqp_cls
    if isinstance(amqp_cls, AdoptedAMQP):
        amqp_cls.join(sender).put_in_place()


class _Always:
    """A function that returns the same pools; it cannot be pickled with an application."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def __call__(self) -> Pools:
        return self._pools

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Always) and other._pools is self._pools

    def __hash__(self) -> int:
        return hash(self._pools)

    def __reduce__(self) -> Any:
        raise PicklingError(
            "a Celery app that was adopted with a Pools object cannot be pickled, because another process has no use "
            "for its connections; pass a function that returns the pools, as in adopt(app, pools=find_pools)"
        )


def _finder_of(pools: Pools | Callable[[], Pools] | None) -> Callable[[], Pools]:
    if pools is None:
        return configured_pools
    return _Always(pools) if isinstance(pools, Pools) else pools


def _checked(app: Any) -> Any:
    """Return *app* itself, where it is a proxy.

    :raises TypeError: if it is no application of Celery.
    :raises CannotAdopt: if Celery's places for its pools are not where they are expected.
    """
    if not isinstance(app, celery.Celery):
        raise TypeError(f"adopt() takes a celery.Celery, not {type(app).__name__}")
    current = getattr(app, "_get_current_object", None)
    app = app if current is None else current()
    kind = type(app)
    missing = [
        name
        for name, is_there in {
            "Celery.amqp_cls": hasattr(app, "amqp_cls"),
            "Celery._pool": "_pool" in vars(celery.Celery),
            "Celery.pool": isinstance(getattr(kind, "pool", None), property)
            and kind.pool is celery.Celery.pool,
            "Celery._ensure_after_fork": callable(getattr(app, "_ensure_after_fork", None)),
            "Celery.on_after_fork": hasattr(getattr(app, "on_after_fork", None), "connect"),
            "AMQP.producer_pool": isinstance(getattr(AMQP, "producer_pool", None), property),
            "AMQP.queues": hasattr(getattr(AMQP, "queues", None), "__get__"),
        }.items()
        if not is_there
    ]
    if missing:
        raise CannotAdopt(
            f"the Celery app {app.main!r} ({kind.__module__}.{kind.__qualname__}, Celery {celery.__version__}) does "
            f"not have {', '.join(missing)} as Celery 5.4 to 5.7 have, so it cannot publish over the pools; do not "
            "adopt it, or use one of these releases and their own class"
        )
    return app


def _replace_what_is_made(app: Any, own_class: type[Any]) -> None:
    """Have what *app* has made already use the pools, too."""
    made = vars(app).get("amqp")
    if made is not None:
        app.amqp_cls.replace_in(made, own_class)
    control = vars(app).get("control")
    if control is not None:
        vars(control.mailbox).pop("producer_pool", None)
