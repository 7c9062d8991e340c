"""What stands for ``app.amqp_cls``: it makes a subclass of the application's own class, with the pools of an alias."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from celery.app.amqp import AMQP
from kombu.utils.imports import symbol_by_name
from kombu.utils.objects import cached_property

from ...aliases import Pools
from .adoption import Adoption
from .arguments_shown import shown
from .errors import CannotAdopt

__all__ = ["AdoptedAMQP"]

#: The parameters of ``as_task_v2`` before ``argsrepr``, which nobody passes by position.
_BEFORE = list(inspect.signature(AMQP.as_task_v2).parameters).index("argsrepr") - 1


class AdoptedAMQP:
    """Makes ``app.amqp``. An application is pickled with it, and adopted again where it is unpickled.

    :param base: the application's ``amqp_cls`` until then: a class, or the path of one.
    :param using: the alias.
    :param find_pools: returns the pools.
    """

    def __init__(self, base: Any, using: str, find_pools: Callable[[], Pools]) -> None:
        self.base = base
        self.using = using
        self.find_pools = find_pools
        #: Set when the application is adopted.
        self.adoption: Adoption | None = None

    def join(self, app: Any) -> Adoption:
        """Return the adoption of *app*, which is made at the first call."""
        if self.adoption is None:
            self.adoption = Adoption(app, self.using, self.find_pools)
            self.adoption.put_in_place()
        return self.adoption

    def __call__(self, app: Any) -> Any:
        return self.class_for(app)(app)

    def class_for(self, app: Any) -> type[Any]:
        """Return the class of ``app.amqp``.

        :raises CannotAdopt: if the application's own class does not have the pools where Celery's has them.
        """
        base: Any = symbol_by_name(self.base)
        adoption = self.join(app)
        if getattr(base, "producer_pool", None) is not AMQP.producer_pool:
            raise CannotAdopt(
                f"amqp_cls of the Celery app {app.main!r} is {base!r}, which is no subclass of celery.app.amqp.AMQP, "
                "or has a producer_pool of its own; remove its producer_pool, or do not adopt the app"
            )

        def producer_pool(amqp: Any) -> Any:
            """The producer pool of the alias."""
            adoption.put_in_place()
            return adoption.producers_face

        def queues(amqp: Any) -> Any:
            """The queues, which workers begin with."""
            adoption.check()
            return base.queues.__get__(amqp, type(amqp))

        pool = property(producer_pool)
        attributes: dict[str, Any] = {
            "producer_pool": pool,
            "publisher_pool": pool,
            "queues": cached_property(queues, lambda amqp, queues: amqp.Queues(queues)),
            "__module__": base.__module__,
            "__doc__": base.__doc__,
        }
        if base.as_task_v2 is AMQP.as_task_v2:
            attributes["as_task_v2"] = _as_task_v2
        return type(base.__name__, (base,), attributes)

    def replace_in(self, amqp: Any, own_class: type[Any]) -> None:
        """Have *amqp*, which is made already and has the queues that were added to it, be of *own_class*."""
        made = type(amqp).as_task_v2
        amqp.__class__ = own_class
        protocols = amqp.task_protocols
        if own_class.as_task_v2 is not made and protocols.get(2) == made.__get__(amqp):
            protocols[2] = amqp.as_task_v2
            vars(amqp).pop("create_task_message", None)

    def __reduce__(self) -> Any:
        return type(self), (self.base, self.using, self.find_pools)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.base!r} over alias {self.using!r}>"


def _as_task_v2(
    amqp: Any,
    task_id: str,
    name: str,
    args: Any = None,
    kwargs: Any = None,
    *more: Any,
    **rest: Any,
) -> Any:
    """Make the message of a task as Celery does, and have its arguments shown in less time."""
    if len(more) + 4 <= _BEFORE and rest.get("argsrepr") is None and rest.get("kwargsrepr") is None:
        # Celery 5.4 has no setting for it.
        levels = getattr(amqp.app.conf, "task_repr_maxlevels", 3)
        rest["argsrepr"] = shown(args or (), amqp.argsrepr_maxsize, levels)
        rest["kwargsrepr"] = shown(kwargs or {}, amqp.kwargsrepr_maxsize, levels)
    return AMQP.as_task_v2(amqp, task_id, name, args, kwargs, *more, **rest)
