"""A batch whose messages the broker does not confirm: written together."""

from __future__ import annotations

import contextlib
from time import monotonic
from typing import Any

from ..batch_state import BatchState
from ..sender import BatchSender
from .batch_errors import connected_anew, settle_after
from .publisher import AT_ONCE
from .transport import LAST_WORD

__all__ = ["GatheredBatch"]


class GatheredBatch(BatchState):
    """Without confirms, on AMQP: written together."""

    def __init__(self, view: BatchSender, max_size: int) -> None:
        super().__init__(view)
        self._most = max_size
        self._published = 0
        #: The ids of those that were gathered since the last write.
        self._waiting: list[str] = []
        #: The transport that they were gathered for.
        self._transport: Any = None
        #: What there is to say since the connection broke: nothing is written or read any more.
        self._broken: str | None = None

    def takes(self) -> bool:
        if self.aborted:
            return super().takes()
        # The first few are sent at once, each by itself, and tried again.
        self._published += 1
        return self._published > AT_ONCE

    def publish(
        self,
        session: Any,
        body: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: float,
    ) -> Any:
        transport, publisher, waiting = session.transport, session.publisher, self._waiting
        before = session.deadline
        try:
            if before is None or deadline < before:
                session.deadline = deadline
            if waiting and transport is not self._transport:
                raise connected_anew()
            if publisher is not None:
                publisher.gathers = True
            done = session.publish(self.view, body, args, kwargs, deadline)
            if transport.gathered:
                waiting.append(kwargs["message_id"])
                self._transport = transport
                if not self._published % self._most:
                    transport.flush()
            if not transport.gathered:
                waiting.clear()
        except BaseException as error:
            self._note(session, error, kwargs["message_id"])
            raise
        finally:
            session.deadline = before
            if publisher is not None:
                publisher.gathers = False
        return done

    def settle(self) -> None:
        """Write what was gathered.

        :raises Exception: the transport's own, if it could not be written, part of it at least, or if something came
            that says so.
        """
        self._flush(self.view.seconds_to_publish, heed=True)

    def _flush(self, seconds: float, *, heed: bool) -> None:
        if self.view.released or self._broken:
            return
        session: Any = self.view.leased_item.pooled_session
        try:
            with session.within(monotonic() + seconds):
                if self._waiting and session.transport is not self._transport:
                    raise connected_anew()
                session.transport.flush()
                self._waiting.clear()
                if heed and session.publisher is not None:
                    # A connection that the broker has ended takes the first write after that.
                    session.publisher.heed()
        except BaseException as error:
            self._note(session, error)
            raise

    def _note(self, session: Any, error: BaseException, message_id: str | None = None) -> None:
        """Take note of *error*, which *message_id* may have been published with."""
        view = self.view
        view.note_what_broke(session, error)
        if not view.broken or self._broken:
            return
        self.aborted = True
        words = (
            f"pool {view.name_of_pool!r}: any of the {self._published} messages of the batch may not be in the broker, "
            "which confirms none of them"
        )
        if isinstance(error, Exception):
            waiting = self._waiting
            if message_id is not None and waiting[-1:] != [message_id]:
                waiting.append(message_id)
            publisher = session.publisher
            lost = session.transport.forget() + (
                message_id is not None and publisher is not None and publisher.heeding
            )
            if lost and waiting:
                words += f"; from message {waiting[-lost:][0]} on, they were not sent"
            self._broken = words
        error.add_note(words)

    def settle_after(self, error: BaseException) -> None:
        settle_after(self, error)

    def tell(self, error: BaseException) -> None:
        if self._broken and self._broken not in getattr(error, "__notes__", ()):
            error.add_note(self._broken)

    def interrupt(self) -> None:
        # They were published, so they are sent if that goes at once.
        self.leave()

    def leave(self) -> None:
        with contextlib.suppress(Exception):
            self._flush(LAST_WORD, heed=False)
