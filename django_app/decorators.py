"""``with_producer``, a decorator for views that need a producer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial, wraps
from types import FunctionType
from typing import Any, TypeVar, overload

from asgiref.sync import iscoroutinefunction, sync_to_async

from kombu_pools_ext import LeasedProducer
from kombu_pools_ext.broker.guarded import guarded

from .async_safety import refuse_in_event_loop
from .conf import pools

__all__ = ["decorated_in", "used_aliases", "with_producer"]

View = TypeVar("View", bound=Callable[..., Any])

#: The aliases that decorated views use, each with the names of the views; for the system checks.
used_aliases: dict[str, list[str]] = {}

#: The attribute of a decorated view that holds its alias. ``functools.wraps`` copies it to wrappers of the view.
_ALIAS = "kombu_pools_using"


@overload
def with_producer(using: View, /) -> View: ...
@overload
def with_producer(using: str = "default") -> Callable[[View], View]: ...
def with_producer(using: Any = "default") -> Any:
    """Pass a producer to a view, as its keyword argument ``producer``, and release it when the view ends.

    It works for sync and async function views, and with Django's ``method_decorator`` for the methods of classes. If
    the view raises an error of the connection, the connection is closed; any other error leaves it open. For an async
    view the producer is acquired in a thread. Its methods block, so publish with
    ``await sync_to_async(producer.publish)(…)``. An async view that only publishes does not need it: see
    :func:`~django_app.apublish`.

    The view waits for the producer as long as ``ACQUIRE_TIMEOUT`` says, and holds it until it ends. In a view that
    publishes rarely, or streams its response, use :func:`~django_app.publish` instead.

    :param using: the alias of the pool. A system check reports one that is not configured.
    :raises UnknownAlias: when the view is called, if no pool is configured under *using*.
    :raises LimitExceeded: when the view is called, if no producer became free in time.
    :raises OperationalError: when the view is called, if the broker cannot be reached.
    :raises SynchronousOnlyOperation: when a sync view is called in a thread whose event loop is running, unless
        ``DJANGO_ALLOW_ASYNC_UNSAFE`` is set.
    """
    if callable(using):
        return with_producer()(using)

    def decorate(view: Any) -> Any:
        _note(using, view)
        make = _async_view if iscoroutinefunction(view) else _sync_view
        decorated = make(view, using)
        setattr(decorated, _ALIAS, using)
        return decorated

    return decorate


def decorated_in(view: Any) -> Iterator[tuple[str, str]]:
    """Yield alias and name of each decorated function in *view* of a URLconf: itself, or methods of its class."""
    while isinstance(view, partial):
        view = view.func
    kind = _class_of(view)
    if kind is None:
        if _is_decorated(view):
            yield vars(view)[_ALIAS], _name_of(view)
        return
    for name in dir(kind):
        owner = next((one for one in kind.__mro__ if name in vars(one)), kind)
        method = vars(owner).get(name)
        if _is_decorated(method):
            # Not the method's own name, because method_decorator may have copied it from another class.
            yield vars(method)[_ALIAS], f"{owner.__module__}.{owner.__qualname__}.{name}"


def _is_decorated(view: Any) -> bool:
    return isinstance(view, FunctionType) and _ALIAS in vars(view)


def _class_of(view: Any) -> type | None:
    """Return the class whose ``as_view()`` made *view*, if any: one of Django's, or of Django REST framework's."""
    kind = getattr(view, "view_class", None) or getattr(view, "cls", None)
    return kind if isinstance(kind, type) else None


def _name_of(view: Any) -> str:
    while (kind := _class_of(view)) is None:
        inner = view.func if isinstance(view, partial) else getattr(view, "__wrapped__", None)
        if inner is None:
            break
        view = inner
    view = kind or view
    return f"{view.__module__}.{getattr(view, '__qualname__', type(view).__qualname__)}"


def _note(alias: str, view: Any) -> None:
    name = _name_of(view)
    views = used_aliases.setdefault(alias, [])
    # method_decorator decorates again at each call, and first a function of its own.
    if name not in views and not name.startswith("django."):
        views.append(name)


def _acquire(using: str) -> LeasedProducer:
    timeout = pools.settings_of(using).acquire_timeout
    return pools.producers[using].acquire(block=timeout is None, timeout=timeout)


def _sync_view(view: Callable[..., Any], using: str) -> Callable[..., Any]:
    call = f"{_name_of(view)}(), which with_producer decorates,"
    instead = "call it in a thread, await sync_to_async(…)(…), or make it an async function"

    @wraps(view)
    def with_a_producer(*args: Any, **kwargs: Any) -> Any:
        refuse_in_event_loop(call, instead)
        with _acquire(using) as producer:
            return view(*args, producer=producer, **kwargs)

    return with_a_producer


def _async_view(view: Callable[..., Any], using: str) -> Callable[..., Any]:
    @wraps(view)
    async def with_a_producer(*args: Any, **kwargs: Any) -> Any:
        # Guarded, because a cancelled view may leave a publish running in a thread, and a view may use several threads.
        producer = guarded(await _acquire_in_thread(using))
        give_back = sync_to_async(producer.dismiss, thread_sensitive=False)
        try:
            response = await view(*args, producer=producer, **kwargs)
        except BaseException as error:
            # Shielded, because a view that is cancelled again must not leave the producer lent.
            await asyncio.shield(give_back(error))
            raise
        await asyncio.shield(give_back())
        return response

    return with_a_producer


async def _acquire_in_thread(using: str) -> LeasedProducer:
    # Not thread-sensitive, because waiting for a producer would block all other sync code.
    acquiring = asyncio.ensure_future(sync_to_async(_acquire, thread_sensitive=False)(using))
    try:
        return await asyncio.shield(acquiring)
    except asyncio.CancelledError:
        # The thread goes on, and nobody uses the producer that it acquires.
        acquiring.add_done_callback(_give_back_unused)
        raise


def _give_back_unused(acquiring: asyncio.Future[LeasedProducer]) -> None:
    if not acquiring.cancelled() and acquiring.exception() is None:
        acquiring.result().release()
