"""What a batch on AMQP ends with."""

from __future__ import annotations

from amqp.exceptions import AMQPError, RecoverableConnectionError

from ...errors import BatchFailed, LeaseError
from ..batch_state import BatchState
from ..session import Session
from ..soundness import is_connection_error

__all__ = ["connected_anew", "is_of_the_connection", "settle_after"]


def is_of_the_connection(session: Session, error: BaseException) -> bool:
    """Whether *error* is the connection's own, or what the broker said of the channel."""
    return isinstance(error, AMQPError) or is_connection_error(session, error)


def connected_anew() -> RecoverableConnectionError:
    """Return what a batch ends with whose connection is another one now."""
    return RecoverableConnectionError("the connection was made anew within the batch")


def settle_after(state: BatchState, error: BaseException) -> None:
    """Settle what was sent before *error*, which ended the block, so that the connection stays good."""
    try:
        state.settle()
    except (BatchFailed, LeaseError):
        pass  # told on the error
    except Exception as failed:
        if not is_of_the_connection(state.view.leased_item.pooled_session, failed):
            # A signal handler's, while it waited.
            raise
        error.add_note(str(failed))
