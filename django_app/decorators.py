"""``with_producer``: a view that is handed a producer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial, wraps
from types import FunctionType
from typing import Any, TypeVar, overload

from asgiref.sync import iscoroutinefunction, sync_to_async

from kombu_pools_ext.broker.guarded import guarded

from .conf import pools

__all__ = ["decorated_in", "used_aliases", "with_producer"]

View = TypeVar("View", bound=Callable[..., Any])

#: The aliases that decorated views ask for, each with the names of those views; for the system checks.
used_aliases: dict[str, list[str]] = {}

#: The attribute of a decorated view that holds its alias; what wraps the view with ``functools.wraps`` has it, too.
_ALIAS = "kombu_pools_using"


@overload
def with_producer(using: View, /) -> View: ...
@overload
def with_producer(using: str = "default") -> Callable[[View], View]: ...
def with_producer(using: Any = "default") -> Any:
    """Hand a view a producer, as its keyword argument ``producer``, and take it back when the view returns or raises.

    For function views, sync and async, and with Django's ``method_decorator`` for the methods of classes. A view that
    raises an error of its connection costs that connection; an error of its own, of whatever class, does not. In an
    async view the producer is acquired in a thread; its methods block, so publish with
    ``await sync_to_async(producer.publish)(…)``.

    The view waits for the producer as long as ``ACQUIRE_TIMEOUT`` says, and holds it to its end: one that publishes
    now and then, or streams its response, is better off with :func:`~django_app.publish`.

    :param using: the alias of the pool; a system check reports one that is not configured.
    :raises UnknownAlias: by the view, if no pool is configured under *using*.
    :raises LimitExceeded: by the view, if no producer became free in time.
    :raises OperationalError: by the view, if the broker cannot be reached.
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
    """Alias and name of what is decorated in *view*, as a URLconf has it: itself, or methods of its class."""
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
            # Not by its own name: method_decorator may have put another class's method into this one.
            yield vars(method)[_ALIAS], f"{owner.__module__}.{owner.__qualname__}.{name}"


def _is_decorated(view: Any) -> bool:
    return isinstance(view, FunctionType) and _ALIAS in vars(view)


def _class_of(view: Any) -> type | None:
    """The class that `as_view()` made *view* of: Django's, or a viewset's of Django REST framework."""
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
    # method_decorator decorates anew at every call, and at first something of its own.
    if name not in views and not name.startswith("django."):
        views.append(name)


def _acquire(using: str) -> Any:
    timeout = pools.settings_of(using).acquire_timeout
    return pools.producers[using].acquire(block=timeout is None, timeout=timeout)


def _sync_view(view: Callable[..., Any], using: str) -> Callable[..., Any]:
    @wraps(view)
    def with_a_producer(*args: Any, **kwargs: Any) -> Any:
        with _acquire(using) as producer:
            return view(*args, producer=producer, **kwargs)

    return with_a_producer


def _async_view(view: Callable[..., Any], using: str) -> Callable[..., Any]:
    @wraps(view)
    async def with_a_producer(*args: Any, **kwargs: Any) -> Any:
        # A view that is cancelled leaves a publish under way in its thread, and may publish in several at a time.
        producer = guarded(await _acquire_in_thread(using))
        give_back = sync_to_async(producer.dismiss, thread_sensitive=False)
        try:
            response = await view(*args, producer=producer, **kwargs)
        except BaseException as error:
            # Shielded: a view that is cancelled again must not leave it lent.
            await asyncio.shield(give_back(error))
            raise
        await asyncio.shield(give_back())
        return response

    return with_a_producer


async def _acquire_in_thread(using: str) -> Any:
    # Not thread-sensitive: there, waiting for a producer would hold up all other sync code.
    acquiring = asyncio.ensure_future(sync_to_async(_acquire, thread_sensitive=False)(using))
    try:
        return await asyncio.shield(acquiring)
    except asyncio.CancelledError:
        # The thread goes on, and what it acquires has no view any more.
        acquiring.add_done_callback(_give_back_unused)
        raise


def _give_back_unused(acquiring: asyncio.Future[Any]) -> None:
    if not acquiring.cancelled() and acquiring.exception() is None:
        acquiring.result().release()
