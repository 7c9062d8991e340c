"""A broker that owes an answer and says nothing: is it busy, or gone?

A queue may take its time, but a connection that is alive answers in milliseconds. So after a while the broker is asked
for something that the connection answers by itself, whatever its queues do. If that has no answer either, a firewall
has forgotten the connection, or the machine at the other end is gone, and nobody will ever say so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from amqp.exceptions import RecoverableConnectionError

from .owner import Owner
from .shared_channel import SharedChannel

__all__ = ["PATIENCE", "SILENCE", "Silence", "ask_for_a_sign", "no_sign"]

#: Seconds without a byte from the broker after which it is asked for one, while it owes answers.
SILENCE = 2.5
#: Seconds for the answer to that. With both, what is on its way has more than half of the default CONFIRM_TIMEOUT left,
#: and who waits for the connection has a second of the default ACQUIRE_TIMEOUT.
PATIENCE = 1.5


def ask_for_a_sign(established: Any, write: Callable[[bytes], object]) -> None:
    """Have *write* ask the broker for something that the connection answers: a channel is opened, and closed."""
    spare = SharedChannel(established, SharedChannel.free_number(established), lambda error: None)
    write(spare.opening + spare.closing)


def no_sign(seconds: float) -> RecoverableConnectionError:
    """Return the error of a connection whose broker was silent for so many *seconds*."""
    return RecoverableConnectionError(
        f"the broker has said nothing for {seconds:.1f} s, also when it was asked"
    )


class Silence:
    """The silence of a broker while one caller waits for its answer.

    To be made when nothing has come for :data:`SILENCE` seconds. It sets the session's deadline to the next look.

    :param session: that of the connection.
    :param until: the caller's own deadline, in seconds of ``time.monotonic``.
    """

    __slots__ = ("_asked", "_established", "_heard", "_session", "_since", "_until")

    def __init__(self, session: Owner, until: float) -> None:
        self._session = session
        self._established: Any = session.connection.established
        self._until = until
        self._since = time.monotonic() - SILENCE
        self._heard = self._state()
        self._asked = False

    def _state(self) -> tuple[int, int]:
        """What changes with each byte from the broker."""
        return self._established.bytes_recv, self._session.transport.has_read

    def is_borne(self) -> bool:
        """Whether to go on waiting; called each time that the session's deadline has passed.

        :raises RecoverableConnectionError: if the broker was asked for a sign, and has given none.
        :raises Exception: what the asking raises.
        """
        now, heard = time.monotonic(), self._state()
        if now >= self._until or self._session.transport.torn:
            return False
        # With an alarm, the broker says so, and reads no more: it would answer nothing.
        if heard != self._heard or self._established.is_blocked:
            self._heard, self._since, self._asked = heard, now, False
            self._look_again(now + SILENCE)
        elif self._asked:
            raise no_sign(now - self._since)
        else:
            self._asked = True
            self._look_again(now + PATIENCE)
            ask_for_a_sign(self._established, self._session.transport.write)
        return True

    def _look_again(self, at: float) -> None:
        self._session.deadline = min(at, self._until)
