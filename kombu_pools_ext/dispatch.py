"""Publish prepared messages, as many as possible in confirmed batches, and report the outcome of each."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from amqp.exceptions import ConnectionError
from kombu.exceptions import LimitExceeded, OperationalError

from . import events
from .broker.own_errors import raised_by_library
from .errors import (
    BatchFailed,
    Outcome,
    PublishError,
    PublishNacked,
    PublishReturned,
    PublishUnknown,
)

if TYPE_CHECKING:
    from .aliases import Pools
    from .prepared import PreparedMessage

__all__ = ["NOT_SENT", "add_notes", "publish_prepared"]

#: The most failed messages that an exception has notes for. The log has a record for each one.
MOST_NOTES = 10

#: The most messages of one batch, because it keeps the outcome of each until it ends.
MOST_IN_BATCH = 10_000

#: Keywords of one publish that a batch cannot apply to a single message.
_NOT_IN_A_BATCH = frozenset(
    {"acquire_timeout", "timeout", "confirm_timeout", "retry", "retry_policy"}
)

#: For a message that was not tried.
NOT_SENT = "it was not sent"
#: For a message whose outcome is unknown.
MAYBE_THERE = "it may be in the broker, or not"
_TOLD = {
    Outcome.NACKED: "the broker refused it (NACKED)",
    Outcome.RETURNED: "there is no queue for it (RETURNED)",
    Outcome.UNKNOWN: f"no confirm came (UNKNOWN): {MAYBE_THERE}",
}
_KNOWN_BY: Mapping[type[BaseException], Outcome] = {
    PublishNacked: Outcome.NACKED,
    PublishReturned: Outcome.RETURNED,
    PublishUnknown: Outcome.UNKNOWN,
}


def publish_prepared(
    pools: Pools, messages: Sequence[PreparedMessage], logger: logging.Logger
) -> None:
    """Publish *messages*, those of each alias in their order.

    If the broker confirms, the messages of an alias are sent as one batch. If the batch breaks, messages that were not
    sent or not answered are published again one by one, as ``RETRY`` says, with the same ``message_id``. If the broker
    cannot be reached, the remaining messages of the alias are not tried, because each of them would wait as long.

    Each message that was not published, or may not have been, is logged with *logger*; the first ten also become notes
    on the exception.

    :raises BatchFailed: if the broker refused or returned messages of a batch; ``results`` has the outcome of each.
    :raises Exception: the first error of :meth:`.Pools.publish`.
    """
    events.after_commit.send(ids=[one.message_id for one in messages])
    aliases: dict[str, list[PreparedMessage]] = {}
    for message in messages:
        aliases.setdefault(message.using, []).append(message)
    dispatches = [_Dispatch(pools, using, group) for using, group in aliases.items()]
    try:
        for dispatch in dispatches:
            dispatch.run()
    except BaseException as interruption:
        for dispatch in dispatches:
            dispatch.interrupted(interruption)
        _tell(dispatches, logger, interruption)
        raise
    errors = [error for dispatch in dispatches if (error := dispatch.error()) is not None]
    if errors:
        _tell(dispatches, logger, errors[0])
        try:
            raise errors[0]
        finally:
            # Breaks the cycle of the error, its traceback and this frame.
            del errors


def _tell(dispatches: Iterable[_Dispatch], logger: logging.Logger, error: BaseException) -> None:
    failures = [text for dispatch in dispatches for text in dispatch.failures()]
    for text in failures:
        logger.error("%s", text)
    add_notes(error, failures)


def add_notes(error: BaseException, failures: Sequence[str]) -> None:
    """Add the first ten of *failures* to *error* as notes, and the number of the others."""
    for text in failures[:MOST_NOTES]:
        error.add_note(text)
    if len(failures) > MOST_NOTES:
        error.add_note(f"and {len(failures) - MOST_NOTES} more, each of which is in the log")


class _Dispatch:
    """Publishes the messages of one alias, and collects their outcomes."""

    def __init__(self, pools: Pools, using: str, messages: Sequence[PreparedMessage]) -> None:
        self._pools = pools
        self._using = using
        self._settings = pools.settings_of(using)
        self._messages = messages
        #: Exchanges that have accepted a message. One that does not exist would break the batch for all its messages.
        self._known: set[str] = {""}
        #: The outcomes of the messages that may have been sent.
        self._outcomes: dict[PreparedMessage, Outcome] = {}
        #: The errors of the messages that failed with one.
        self._errors: dict[PreparedMessage, BaseException] = {}
        #: The error because of which the remaining messages are not tried.
        self._gave_up: BaseException | None = None
        #: The batch that is open, and its messages.
        self._batch: Any = None
        self._in_batch: Sequence[PreparedMessage] = ()
        #: The message that is being published by itself.
        self._alone: PreparedMessage | None = None

    def run(self) -> None:
        """Publish all. Errors are kept for :meth:`error`; only interruptions, such as Ctrl-C, are raised."""
        for run in self._runs():
            left: Iterable[PreparedMessage] = run
            if len(run) > 1:
                left = self._publish_in_batch(run)
            for message in left:
                if self._gave_up is not None:
                    return
                self._publish_alone(message)

    def _runs(self) -> Iterator[list[PreparedMessage]]:
        """Yield the messages in their order, as lists that can be one batch, or have one message."""
        if not self._settings.has_confirms:
            yield from ([one] for one in self._messages)
            return
        run: dict[str, PreparedMessage] = {}
        for message in self._messages:
            alone = self._is_alone(message)
            # The outcomes of a batch are known by message_id, so that each may be in it only once.
            if run and (alone or message.message_id in run or len(run) == MOST_IN_BATCH):
                yield list(run.values())
                run = {}
            if alone:
                yield [message]
            else:
                run[message.message_id] = message
        if run:
            yield list(run.values())

    def _is_alone(self, message: PreparedMessage) -> bool:
        """Return whether *message* must be published by itself.

        This is so for the first message to each exchange, and for one with a ``user_id``: the broker may close the
        channel because of it. Then the outcome of its neighbours in a batch would be unknown, and they would be
        published twice.
        """
        arguments = message.arguments
        return (
            arguments["exchange"] not in self._known
            or arguments.get("user_id") is not None
            or not _NOT_IN_A_BATCH.isdisjoint(arguments)
        )

    def _publish_in_batch(self, run: Sequence[PreparedMessage]) -> list[PreparedMessage]:
        """Publish *run* in one batch.

        :returns: the messages that remain to be published one by one.
        """
        timeout = self._settings.acquire_timeout
        results: Mapping[str, Outcome]
        try:
            with self._pools.producers[self._using].acquire(
                block=timeout is None, timeout=timeout
            ) as producer:
                self._in_batch, self._batch = run, producer.batch()
                with self._batch:
                    for message in run:
                        producer.publish(message.body, **message.arguments)
            results = self._batch.results
        except BatchFailed as failed:
            # A message that was never written counts as not tried.
            results = {
                one: what for one, what in failed.results.items() if one not in failed.unsent
            }
        except Exception as error:
            if not raised_by_library(error):
                raise
            if self._batch is None:
                self._errors[run[0]] = self._gave_up = error
                return []
            # The error concerns one message, which will raise it again when it is published by itself.
            results = self._batch.results
        self._batch = None
        self._outcomes |= {one: results[one.message_id] for one in run if one.message_id in results}
        return [one for one in run if self._is_to_be_published_again(one)]

    def _is_to_be_published_again(self, message: PreparedMessage) -> bool:
        outcome = self._outcomes.get(message)
        if outcome is None:
            return True
        if outcome is Outcome.UNKNOWN:
            return self._settings.retry is not None
        # The queue may have been deleted since it was declared on this connection.
        return outcome is Outcome.RETURNED and bool(message.arguments.get("declare"))

    def _publish_alone(self, message: PreparedMessage) -> None:
        self._alone = message
        try:
            self._pools.publish(message.body, using=self._using, **message.arguments)
        except Exception as error:
            if not raised_by_library(error):
                raise
            self._errors[message] = error
            for kind, outcome in _KNOWN_BY.items():
                if isinstance(error, kind):
                    self._outcomes[message] = outcome
            if self._is_out_of_reach(error):
                self._gave_up = error
        else:
            self._outcomes[message] = Outcome.ACKED
            self._known.add(message.arguments["exchange"])
        self._alone = None

    def _is_out_of_reach(self, error: Exception) -> bool:
        """Return whether *error* concerns the connection to the broker, and not only one message."""
        if isinstance(error, PublishError):
            return isinstance(error, PublishUnknown)
        if isinstance(error, LimitExceeded | OperationalError | ConnectionError | OSError):
            return True
        return isinstance(error, self._settings.connection().connection_errors)

    def interrupted(self, error: BaseException) -> None:
        """Note that *error* interrupted the work, perhaps within a batch."""
        self._gave_up = self._gave_up or error
        if self._batch is not None:
            results = self._batch.results
            for one in self._in_batch:
                if one.message_id in results:
                    self._outcomes[one] = results[one.message_id]
        if self._alone is not None:
            self._errors[self._alone] = error

    def failures(self) -> Iterator[str]:
        """Yield a line for each message that was not published, or may not have been."""
        for message in self._messages:
            outcome, error = self._outcomes.get(message), self._errors.get(message)
            if outcome is Outcome.ACKED:
                continue
            said = []
            if error is not None:
                said.append(f"{type(error).__name__}: {error}".rstrip(": "))
                if outcome is not Outcome.UNKNOWN:
                    # The notes of publish() say whether it was sent, but only for its own attempts.
                    notes = getattr(error, "__notes__", ())
                    said += [note for note in notes if message.message_id in note]
            elif outcome is None:
                cause = "" if self._gave_up is None else f", after {type(self._gave_up).__name__}"
                said.append(f"{NOT_SENT}{cause}")
            if outcome is not None and not isinstance(
                error, PublishNacked | PublishReturned | PublishUnknown
            ):
                said.append(_TOLD[outcome])
            yield f"publishing message {message.message_id} failed ({message.where}): {'; '.join(said)}"

    def error(self) -> BaseException | None:
        """Return the error to raise; ``None`` if all were published."""
        failed = [one for one in self._messages if self._outcomes.get(one) is not Outcome.ACKED]
        if not failed:
            return None
        first = next((self._errors[one] for one in failed if one in self._errors), None)
        if first is not None:
            return first
        # If two messages have the same message_id, the failed one counts.
        outcomes = sorted(self._outcomes.items(), key=lambda pair: pair[1] is not Outcome.ACKED)
        failure = BatchFailed({one.message_id: outcome for one, outcome in outcomes})
        failure.pool = self._pools.producers[self._using].name
        return failure
