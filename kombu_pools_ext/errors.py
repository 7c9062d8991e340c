"""The errors of this library. Each is a subclass of one of kombu's, so that code written for kombu catches it.

The text of an error names the pool (never its password), the value, and what to do. ``docs/reference/errors.md`` lists
them all. The texts of the pool's errors are made in ``engine/``, those of a publish where it fails, in ``broker/``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, Self

from amqp import spec
from amqp.exceptions import ChannelError, MessageNacked
from kombu.exceptions import ConnectionLimitExceeded, KombuError, OperationalError

from .engine import errors as engine
from .settings import PoolSettings, Problem, SettingsError

__all__ = [
    "BatchFailed",
    "BlockingInEventLoop",
    "BrokerBlocked",
    "BrokerUnreachable",
    "ConnectTimeout",
    "ConnectionsKept",
    "ControlError",
    "LeaseError",
    "Outcome",
    "PoolClosed",
    "PoolError",
    "PoolExhausted",
    "PoolFull",
    "PoolReentered",
    "PoolSuspended",
    "PoolTimeout",
    "Problem",
    "PublishError",
    "PublishNacked",
    "PublishRefused",
    "PublishReturned",
    "PublishUnknown",
    "SettingsError",
    "UnknownAlias",
]


#: Attributes of an ``OSError`` that are not in its ``__dict__``.
_OF_OS_ERRORS = ("errno", "strerror", "filename", "filename2")


class _Joinable:
    """Mixin for errors that can also be instances of the classes of their causes.

    kombu raises the transport's own error where this library raises its own. Code that looks for the former, by
    ``except`` or in :attr:`kombu.Connection.recoverable_connection_errors`, must find the latter as well.
    """

    #: The classes that :func:`_joined` made this class of.
    _joined_from: tuple[type[Any], ...] = ()

    args: tuple[Any, ...]

    def like(self, *causes: BaseException) -> Self:
        """Return this error as one that is also of the classes of *causes*, with their attributes.

        Pool errors and ``OperationalError`` among the causes add nothing.
        """
        first, *others = self._joined_from or (type(self),)
        state: dict[str, Any] = {}
        for cause in causes:
            for kind in _kinds_of(cause):
                if not issubclass(first, kind) and not any(issubclass(one, kind) for one in others):
                    others = [one for one in others if not issubclass(kind, one)]
                    others.append(kind)
                    state.update(_state_of(cause))
        state.pop("__notes__", None)
        state.update(_state_of(self))
        error: Self = _remade((first, *others), self.args, state)
        return error

    def __str__(self) -> str:
        # Not by super(), because each class that is mixed in has its own text.
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> Any:
        # By default, pickle makes an exception of its arguments only, and would lose class and attributes.
        return _remade, (self._joined_from or (type(self),), self.args, _state_of(self))


def _state_of(error: Any) -> dict[str, Any]:
    state: dict[str, Any] = error.__dict__.copy()
    if isinstance(error, OSError):
        state.update({name: getattr(error, name) for name in _OF_OS_ERRORS})
    return state


def _kinds_of(cause: BaseException) -> list[type[BaseException]]:
    """Return the most derived classes of *cause* that are neither this library's nor ``OperationalError``."""
    if isinstance(cause, engine.PoolError):
        return []
    kinds: list[type[BaseException]] = []
    for kind in type(cause).__mro__:
        if (
            issubclass(kind, BaseException)
            and not issubclass(kind, OperationalError)
            and not any(issubclass(one, kind) for one in kinds)
        ):
            kinds.append(kind)
    return kinds


@lru_cache(maxsize=256)
def _joined(kinds: tuple[type[Any], ...]) -> type[Any]:
    """Return a subclass of all *kinds* with the name of the first."""
    first = kinds[0]
    names = {"_joined_from": kinds, "__module__": first.__module__, "__doc__": first.__doc__}
    return type(first.__name__, kinds, names)


def _remade(kinds: tuple[type[Any], ...], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    kind = _joined(kinds) if kinds[1:] else kinds[0]
    error = kind.__new__(kind, *args)
    # An OSError takes its arguments in __new__, unless a subclass has an __init__.
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


class PoolError(_Joinable, engine.PoolError, KombuError):
    """Base class of the errors with which a pool refuses a caller."""


class PoolExhausted(PoolError, engine.PoolExhausted, ConnectionLimitExceeded):
    """All connections are lent, and the caller does not wait (neither ``block`` nor ``timeout``)."""


class PoolTimeout(PoolError, engine.PoolTimeout, ConnectionLimitExceeded):
    """No connection became free within the caller's ``timeout``."""


class PoolFull(PoolError, engine.PoolFull, ConnectionLimitExceeded):
    """``MAX_WAITING`` callers wait already. A pool of a URL or a ``Connection`` has no such bound."""


class BrokerUnreachable(PoolError, engine.OpenFailed, OperationalError):
    """No connection could be opened; ``__cause__`` is the transport's error.

    The error of a connection pool is also an instance of the transport's own error class, which kombu would raise. A
    producer pool raises only the ``OperationalError``, as kombu's do.
    """


class BrokerBlocked(
    PoolError, engine.PoolBlocked, ConnectionLimitExceeded, OperationalError, TimeoutError
):
    """The broker accepts no messages, because of an alarm for memory or disk; nothing was sent.

    kombu would lend the producer, and its publish would end in a ``TimeoutError``, so this is one as well.
    """


class PoolSuspended(PoolError, engine.PoolSuspended, ConnectionLimitExceeded):
    """The pool was suspended by ``suspend()``, and not resumed within the caller's ``timeout``."""


class ConnectTimeout(PoolTimeout, BrokerUnreachable, engine.ConnectTimeout):
    """The caller's ``timeout`` ended while a connection was being opened: the broker is slow, or unreachable."""


class ConnectionsKept(PoolError, OperationalError):
    """A reset or reload could not open a new connection, so the old ones are still open; ``__cause__`` says why.

    :param words: the text of the error.
    :param failures: by alias, why the new connection could not be opened.
    :param tried: by alias, the settings that it was opened with.
    """

    def __init__(
        self,
        words: str,
        failures: Mapping[str, Exception] | None = None,
        tried: Mapping[str, PoolSettings] | None = None,
    ) -> None:
        super().__init__(words)
        #: By alias, why the new connection could not be opened. The other pools of a reset were reset.
        self.failures = dict(failures or {})
        #: By alias, the settings that the new connection was opened with.
        self.tried = dict(tried or {})


class PoolClosed(PoolError, engine.PoolClosed, RuntimeError):
    """The pool was closed by ``force_close_all()``. kombu raises a ``RuntimeError`` here, so this is one."""


class PoolReentered(PoolError, engine.PoolReentered, ConnectionLimitExceeded):
    """A signal handler or finalizer interrupted the pool's critical section, and asked the pool for a lease."""


class LeaseError(PoolError, engine.LeaseError, RuntimeError):
    """A connection or producer was used after its release or after a fork, or was released to another pool."""


class UnknownAlias(PoolError, KeyError):
    """No pool is configured under this alias. The text lists the known aliases, and the nearest."""


class ControlError(KombuError):
    """The processes of a project, or this process, cannot be reached by commands. The text says why, and what to do."""


class BlockingInEventLoop(RuntimeWarning):
    """A call that blocks was made in a thread whose event loop is running. The text names the line, and what to do."""


class Outcome(StrEnum):
    """What became of a message, as far as the broker has said."""

    #: Each queue that it was routed to has it. A message that is not mandatory may have been routed to no queue.
    ACKED = "ACKED"
    #: The broker refused it: at least one of its queues does not have it, but others may.
    NACKED = "NACKED"
    #: It was mandatory, and no queue took it.
    RETURNED = "RETURNED"
    #: The connection broke, or the time was up, before the broker answered: its queues may have it, or not.
    UNKNOWN = "UNKNOWN"


class PublishError(_Joinable, OperationalError):
    """A message was not published, or may not have been. The text says which."""

    #: The name of the producer's pool; ``None`` if it has none.
    pool: str | None = None

    def __init__(self, words: str, message_id: str | None = None) -> None:
        # Not by super(), because a class of the transport that is mixed in may take other arguments.
        self.args = (words,)
        #: The message's ``message_id``, by which consumers recognise duplicates.
        self.message_id = message_id

    def __str__(self) -> str:
        words = super().__str__()
        return words if self.pool is None else f"pool {self.pool!r}: {words}"


class PublishNacked(PublishError, MessageNacked):
    """The broker refused the message: at least one of its queues does not have it, but others may.

    A queue was full (``x-overflow: reject-publish``), or failed to store the message. RabbitMQ does not say which.
    """


class PublishRefused(PublishError):
    """The broker answered the message with an error, and does not have it. Redis does so if it is out of memory.

    The error is also an instance of the class of the server's error, such as ``redis.exceptions.OutOfMemoryError``,
    with its attributes; ``__cause__`` is that error.
    """


class PublishReturned(PublishError, ChannelError):
    """The message was mandatory, by its own argument or by ``MANDATORY``, and no queue took it.

    It has the attributes of py-amqp's own error, which kombu raises: ``reply_code`` is 312, ``reply_text`` is
    ``NO_ROUTE``, and ``method_name`` is ``Basic.return``.
    """

    #: Whether a callback of the application, such as ``on_return``, was called for it.
    heard = False

    def __init__(
        self,
        message_id: str | None,
        reply_code: int,
        reply_text: str,
        exchange: str,
        routing_key: str,
    ) -> None:
        remedy = (
            "bind a queue to the exchange with that key"
            if exchange
            else "there is no queue of that name: declare it first, as declare=[Queue(…)] does"
        )
        ChannelError.__init__(self, reply_text, spec.Basic.Return, reply_code=reply_code)
        PublishError.__init__(
            self,
            f"message {message_id} is in no queue, and the broker returned it: {reply_code} {reply_text} (exchange "
            f"{exchange!r}, routing key {routing_key!r}); {remedy}; a message that may get lost is published with "
            "mandatory=False, and an alias of such messages has the setting MANDATORY",
            message_id,
        )
        self.exchange = exchange
        self.routing_key = routing_key


class PublishUnknown(PublishError):
    """The connection broke, or the time was up, before the confirm: the broker may have the message, or not.

    The error is also an instance of the class of the transport's error, such as ``ConnectionResetError`` or
    ``TimeoutError``, with its attributes; ``__cause__`` is that error.
    """


class BatchFailed(PublishError):
    """Not all messages of a batch were confirmed. :attr:`results` has the outcome of each message of the batch.

    If the connection breaks within the block, the batch ends there. A message that is not in ``results`` was never
    given to the batch.
    """

    def __init__(self, results: Mapping[str, Outcome], unsent: Collection[str] = ()) -> None:
        failed = (one for one, outcome in results.items() if outcome is not Outcome.ACKED)
        super().__init__(
            f"{outcomes_in_words(results, unsent)}; see .results: a message that is not in it was not given to the "
            "batch",
            next(failed, None),
        )
        #: The outcome of each message, by its ``message_id``.
        self.results = dict(results)
        #: The messages among those UNKNOWN that were never written to the connection, so that no queue has them.
        self.unsent = frozenset(unsent)


def outcomes_in_words(results: Mapping[str, Outcome], unsent: Collection[str]) -> str:
    """Return a text that says how many messages of a batch were confirmed, and what became of the others."""
    counts = Counter(results.values())
    told = ", ".join(f"{counts[one]} {one}" for one in Outcome if counts[one])
    failed, unknown = len(results) - counts[Outcome.ACKED], counts[Outcome.UNKNOWN]
    if not failed:
        return f"all {len(results)} messages that the batch had been given were confirmed"
    words = f"{failed} of {len(results)} messages of the batch were not confirmed ({told})"
    if unsent:
        words += f"; {len(unsent)} of those UNKNOWN were not sent"
    if unknown > len(unsent):
        words += f"; {'the others' if unsent else 'those UNKNOWN'} may be in the broker"
    return words
