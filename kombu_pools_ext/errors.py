"""Every error of the library. Each joins kombu's family, so that code written for kombu catches it.

An error names the pool (never its password), the value, and the remedy.
``docs/reference/errors.md`` has an entry for each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any

from amqp.exceptions import MessageNacked
from kombu.exceptions import ConnectionLimitExceeded, KombuError, OperationalError

from .engine import errors as engine
from .settings import PoolSettings, Problem, SettingsError

__all__ = [
    "BatchFailed",
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


class PoolError(engine.PoolError, KombuError):
    """Any refusal of a pool."""


class PoolExhausted(PoolError, engine.PoolExhausted, ConnectionLimitExceeded):
    """Everything is lent, and the caller did not want to wait (no ``block``, no ``timeout``)."""


class PoolTimeout(PoolError, engine.PoolTimeout, ConnectionLimitExceeded):
    """Nothing became free within the caller's ``timeout``."""


class PoolFull(PoolError, engine.PoolFull, ConnectionLimitExceeded):
    """As many callers wait already as ``MAX_WAITING`` admits."""


class BrokerUnreachable(PoolError, engine.OpenFailed, OperationalError):
    """No connection could be made; ``__cause__`` is the transport's error."""


class BrokerBlocked(PoolError, engine.PoolBlocked, ConnectionLimitExceeded, OperationalError):
    """The broker takes no messages for now (an alarm for memory or disk); nothing was sent."""


class PoolSuspended(PoolError, engine.PoolSuspended, ConnectionLimitExceeded):
    """The pool was suspended by ``suspend()``, and not resumed within the caller's ``timeout``."""


class ConnectTimeout(PoolTimeout, BrokerUnreachable, engine.ConnectTimeout):
    """The caller's ``timeout`` came while a connection was being made: the broker is slow, or not there."""


class ConnectionsKept(PoolError, OperationalError):
    """A reset or reload could not open a new connection first, so the old ones are still open; ``__cause__`` says why.

    :param words: what was kept.
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
    """The pool was closed by ``force_close_all()``; kombu raises a ``RuntimeError`` here, so this is one."""


class PoolReentered(PoolError, engine.PoolReentered, ConnectionLimitExceeded):
    """A signal handler or finalizer interrupted the pool's critical section and asked it for a lease."""


class LeaseError(PoolError, engine.LeaseError, RuntimeError):
    """A connection or producer was used after its release, after a fork, or given back to a foreign pool."""


class UnknownAlias(PoolError, KeyError):
    """No pool is configured under this name; the message lists those that are, and the nearest."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message.
        return str(self.args[0])


class ControlError(KombuError):
    """The processes of a project cannot be reached, or this one cannot be: the text says why, and what to do."""


class Outcome(StrEnum):
    """What became of a message, as far as the broker has told."""

    #: Every queue that it was routed to has it. A message that is not mandatory may have been routed to none.
    ACKED = "ACKED"
    #: The broker refused it: at least one of its queues does not have it, the others may.
    NACKED = "NACKED"
    #: It was mandatory, and was routed to no queue: none has it.
    RETURNED = "RETURNED"
    #: The connection broke, or the time was up, before the broker's word: its queues may have it, or not.
    UNKNOWN = "UNKNOWN"


class PublishError(OperationalError):
    """A message was not published, or may not have been; the text says which."""

    #: The name of the pool that the producer was lent from, if it was.
    pool: str | None = None

    def __init__(self, words: str, message_id: str | None = None) -> None:
        super().__init__(words)
        #: The message's ``message_id``, by which consumers tell copies.
        self.message_id = message_id

    def __str__(self) -> str:
        words = super().__str__()
        return words if self.pool is None else f"pool {self.pool!r}: {words}"

    def __reduce__(self) -> Any:
        # Exceptions are made anew of their arguments alone, which here are not all of them.
        return _remade, (type(self), self.args, self.__dict__.copy())


def _remade(kind: type[PublishError], args: tuple[Any, ...], state: dict[str, Any]) -> PublishError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class PublishNacked(PublishError, MessageNacked):
    """The broker refused the message: at least one of its queues does not have it; the others may.

    A queue was full (``x-overflow: reject-publish``), or failed to store it. RabbitMQ does not say which.
    """


class PublishRefused(PublishError):
    """The broker answered the message with an error: it is not there. Redis does that, out of memory for example.

    What is raised is of the class of the server's own error as well, ``redis.exceptions.OutOfMemoryError`` say, with
    its attributes; ``__cause__`` is that error.
    """

    @classmethod
    def like(
        cls, errors: Iterable[BaseException], words: str, message_id: str | None
    ) -> PublishRefused:
        """One that is of the classes of *errors*, too."""
        state: dict[str, Any] = {}
        for error in errors:
            state.update(error.__dict__)
        state.pop("__notes__", None)
        state["message_id"] = message_id
        # Not by an __init__, which may want other arguments.
        return _refused(tuple(map(type, errors)), (words,), state)


@lru_cache(maxsize=64)
def _refused_like(kinds: tuple[type[BaseException], ...]) -> type[PublishRefused]:
    def reduce(self: PublishRefused) -> Any:
        return _refused, (kinds, self.args, self.__dict__.copy())

    names = {"__reduce__": reduce, "__module__": __name__, "__doc__": PublishRefused.__doc__}
    return type(PublishRefused.__name__, (PublishRefused, *kinds), names)


def _refused(
    kinds: tuple[type[BaseException], ...], args: tuple[Any, ...], state: dict[str, Any]
) -> PublishRefused:
    refused: Any = _remade(_refused_like(kinds), args, state)
    return refused  # type: ignore[no-any-return]  # of the class it was given


class PublishReturned(PublishError):
    """The message was ``mandatory``, by itself or by ``MANDATORY``, and the broker found no queue for it."""

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
        super().__init__(
            f"message {message_id} is in no queue, and the broker returned it: {reply_code} {reply_text} (exchange "
            f"{exchange!r}, routing key {routing_key!r}); {remedy}; a message that may get lost is published with "
            "mandatory=False, and an alias of such messages has the setting MANDATORY",
            message_id,
        )
        #: The broker's reason, such as 312 ``NO_ROUTE``.
        self.reply_code = reply_code
        self.reply_text = reply_text
        self.exchange = exchange
        self.routing_key = routing_key


class PublishUnknown(PublishError):
    """The connection broke, or the time was up, between sending and confirm: the message may be there, or not."""


class BatchFailed(PublishError):
    """Not every message of a batch was confirmed; :attr:`results` has the outcome of each that the batch was given.

    Where the connection breaks in the middle of a block, the batch ends there: a message that is not in ``results`` was
    never handed to it.
    """

    def __init__(self, results: Mapping[str, Outcome], unsent: Collection[str] = ()) -> None:
        failed = (one for one, outcome in results.items() if outcome is not Outcome.ACKED)
        super().__init__(
            f"{outcomes_in_words(results, unsent)}; see .results: a message that is not in it was not given to the "
            "batch",
            next(failed, None),
        )
        #: What became of each message, by its ``message_id``.
        self.results = dict(results)
        #: Those among the UNKNOWN that were never written to the connection: no queue has them.
        self.unsent = frozenset(unsent)


def outcomes_in_words(results: Mapping[str, Outcome], unsent: Collection[str]) -> str:
    """Say how many messages of a batch were confirmed, and what became of the others."""
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
