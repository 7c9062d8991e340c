"""Publishing prepared messages: many in one confirmed batch, and each with an outcome that is told."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from amqp.exceptions import ConnectionError
from kombu.exceptions import LimitExceeded, OperationalError

from .broker.own_errors import raised_by_carrier
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

__all__ = ["publish_prepared"]

#: Failed messages that an exception has a note for, each; the log has a record for each, however many they are.
MOST_NOTES = 10

#: Messages of one batch: it keeps the outcome of each until it ends.
MOST_IN_BATCH = 10_000

#: What belongs to one publish, and cannot be kept for each message of a batch.
_OF_ITS_OWN = frozenset({"acquire_timeout", "timeout", "confirm_timeout", "retry", "retry_policy"})

#: Said of what was not tried.
NOT_SENT = "it was not sent"
#: Said of what may be there.
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
    """Publish *messages*, those of each alias in their order, and return when that is done.

    Where the broker confirms, several of one alias go out as one batch. What was not sent when that broke, or has no
    answer, is published again by itself, as ``RETRY`` says, with the same ``message_id``. Where the broker cannot be
    reached, the rest of the alias is not tried: each message would wait as long.

    Each message that was not published, or may not have been, has a record of *logger* and, the first ten, a note on
    what is raised.

    :raises BatchFailed: if the broker refused or returned messages of a batch; ``results`` have each one's outcome.
    :raises Exception: those of :meth:`.Pools.publish`; of several errors the first.
    """
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
            # Else the error would hold its traceback, that this frame, and the frame the error.
            del errors


def _tell(dispatches: Iterable[_Dispatch], logger: logging.Logger, error: BaseException) -> None:
    failures = [text for dispatch in dispatches for text in dispatch.failures()]
    for text in failures:
        logger.error("%s", text)
    for text in failures[:MOST_NOTES]:
        error.add_note(text)
    if len(failures) > MOST_NOTES:
        error.add_note(f"and {len(failures) - MOST_NOTES} more, each of which is in the log")


class _Dispatch:
    """The messages of one alias on their way."""

    def __init__(self, pools: Pools, using: str, messages: Sequence[PreparedMessage]) -> None:
        self._pools = pools
        self._using = using
        self._settings = pools.settings_of(using)
        self._messages = messages
        #: Exchanges that have taken a message: a batch to one that is not there would break for all its messages.
        self._known: set[str] = {""}
        #: Those that may have been sent: what became of them.
        self._outcomes: dict[PreparedMessage, Outcome] = {}
        #: Those that failed of something: of what.
        self._errors: dict[PreparedMessage, BaseException] = {}
        #: What kept the rest from being tried.
        self._gave_up: BaseException | None = None
        #: The batch whose block has not ended, and what goes into it.
        self._batch: Any = None
        self._in_batch: Sequence[PreparedMessage] = ()
        #: The message that is being published by itself.
        self._alone: PreparedMessage | None = None

    def run(self) -> None:
        """Publish; errors are kept for :meth:`error`, but for those that interrupt, as a signal handler's do."""
        for run in self._runs():
            left: Iterable[PreparedMessage] = run
            if len(run) > 1:
                left = self._publish_in_batch(run)
            for message in left:
                if self._gave_up is not None:
                    return
                self._publish_alone(message)

    def _runs(self) -> Iterator[list[PreparedMessage]]:
        """The messages in their order: those that can go into one batch together, or one alone."""
        if not self._settings.has_confirms:
            yield from ([one] for one in self._messages)
            return
        run: dict[str, PreparedMessage] = {}
        for message in self._messages:
            alone = self._is_alone(message)
            # A batch tells outcomes by message_id.
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
        """Whether *message* is not for a batch.

        The first one to each exchange is not, nor one with a ``user_id``: if the broker closed the channel for it,
        nobody would know what became of those around it, and they would be published twice.
        """
        arguments = message.arguments
        return (
            arguments["exchange"] not in self._known
            or arguments.get("user_id") is not None
            or not _OF_ITS_OWN.isdisjoint(arguments)
        )

    def _publish_in_batch(self, run: Sequence[PreparedMessage]) -> list[PreparedMessage]:
        """Publish *run* in one batch.

        :returns: those that are to be published by themselves.
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
            # What was never written was not tried yet.
            results = {
                one: what for one, what in failed.results.items() if one not in failed.unsent
            }
        except Exception as error:
            if not raised_by_carrier(error):
                raise
            if self._batch is None:
                self._errors[run[0]] = self._gave_up = error
                return []
            # Of one message, which will fail of it again when it is alone.
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
            if not raised_by_carrier(error):
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
        """Whether *error* says something of the way to the broker, and not of one message."""
        if isinstance(error, PublishError):
            return isinstance(error, PublishUnknown)
        if isinstance(error, LimitExceeded | OperationalError | ConnectionError | OSError):
            return True
        return isinstance(error, self._settings.connection().connection_errors)

    def interrupted(self, error: BaseException) -> None:
        """Note that *error* ended it all, in mid-batch perhaps."""
        self._gave_up = self._gave_up or error
        if self._batch is not None:
            results = self._batch.results
            for one in self._in_batch:
                if one.message_id in results:
                    self._outcomes[one] = results[one.message_id]
        if self._alone is not None:
            self._errors[self._alone] = error

    def failures(self) -> Iterator[str]:
        """A line for each message that was not published, or may not have been."""
        for message in self._messages:
            outcome, error = self._outcomes.get(message), self._errors.get(message)
            if outcome is Outcome.ACKED:
                continue
            said = []
            if error is not None:
                said.append(f"{type(error).__name__}: {error}".rstrip(": "))
                if outcome is not Outcome.UNKNOWN:
                    # Whether it was sent, where publish() knows: of its own tries, not of the batch before them.
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
        """What is to be raised, if not all was published."""
        failed = [one for one in self._messages if self._outcomes.get(one) is not Outcome.ACKED]
        if not failed:
            return None
        first = next((self._errors[one] for one in failed if one in self._errors), None)
        if first is not None:
            return first
        # Of two messages with one message_id, the one that is not there is told.
        outcomes = sorted(self._outcomes.items(), key=lambda pair: pair[1] is not Outcome.ACKED)
        failure = BatchFailed({one.message_id: outcome for one, outcome in outcomes})
        failure.pool = self._pools.producers[self._using].name
        return failure
