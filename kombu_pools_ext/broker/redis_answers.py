"""What Redis answers to a write in place of doing it: an answer is no doubt, the message is not there."""

from __future__ import annotations

from typing import Any

import kombu.exceptions

from ..engine.loaded import loaded
from ..errors import PublishRefused

__all__ = ["is_answer", "is_refusal", "login_refused", "passes", "refusal"]

#: Answers that another connection, or the next try, may not get: the server is the wrong one, is not ready, or wants to
#: be told another password.
_MAY_PASS = frozenset(
    {
        "READONLY",  # demoted: the connection leads to a replica now, and a new one to the new master
        "MASTERDOWN",  # a replica that has lost its master: the same
        "LOADING",  # it has just been started
        "CLUSTERDOWN",  # until its slots are covered again
        "TRYAGAIN",  # until a slot has been moved
        "BUSY",  # until a script has ended
        "MAXCLIENTS",  # until somebody leaves; our name for it, which comes as an ERR
        "NOAUTH",  # credentials are asked for at each connect
        "WRONGPASS",
    }
)
#: What to do about the others, besides publishing again when it has been done. An answer that stands in neither table
#: is final, too: the command was not executed, and would not be the next time.
_REMEDIES = {
    "OOM": "raise its maxmemory, or consume what is there",
    "NOPERM": "grant the user what the text says (ACL SETUSER)",
    "WRONGTYPE": "the key of the queue holds something else: rename the queue, or delete the key",
    "NOREPLICAS": "see to its replicas (min-replicas-to-write)",
    "MISCONF": "it cannot save to its disk: see to that",
    "MOVED": "it is a node of a cluster, which kombu's transport does not know: use another server",
    "ASK": "it is a node of a cluster, which kombu's transport does not know: use another server",
    "CROSSSLOT": "it is a node of a cluster, which kombu's transport does not know: use another server",
    "READONLY": "it is a replica: name the master",
    "MASTERDOWN": "it is a replica: name the master",
    "MAXCLIENTS": "raise its maxclients, or lower LIMIT",
    "NOAUTH": "name user and password",
    "WRONGPASS": "name the right user and password",
}

#: redis-py's classes for answers, each with what the server calls it: older ones do not keep that.
_CLASSES = {
    "OutOfMemoryError": "OOM",
    "NoPermissionError": "NOPERM",
    "ReadOnlyError": "READONLY",
    "MasterDownError": "MASTERDOWN",
    "BusyLoadingError": "LOADING",
    "ClusterDownError": "CLUSTERDOWN",
    "TryAgainError": "TRYAGAIN",
    "MovedError": "MOVED",
    "AskError": "ASK",
    "ClusterCrossSlotError": "CROSSSLOT",
    "AuthenticationError": "WRONGPASS",
    "AuthorizationError": "NOAUTH",
    "ExecAbortError": "EXECABORT",
}
#: Before what a server said, redis-py writes which command of a pipeline it was, with all of its arguments.
_OF_A_PIPELINE = "of pipeline caused error: "
_FULL = "max number of clients reached"
#: What kombu's batch raises from the answer that it got; older ones have no batch.
_BATCHS: Any = getattr(kombu.exceptions, "BatchPublishError", ())


def _text(error: BaseException) -> str:
    return str(error).rpartition(_OF_A_PIPELINE)[2]


def _code(error: BaseException | None) -> str | None:
    """What Redis calls *error*; ``None`` if it is no answer of Redis."""
    errors: Any = loaded("redis.exceptions")
    if error is not None and isinstance(error, _BATCHS):
        error = error.__cause__
    if error is None or errors is None or not isinstance(error, errors.RedisError):
        return None
    if _FULL in str(error):
        return "MAXCLIENTS"
    code = _CLASSES.get(type(error).__name__)
    if code is not None:
        return code
    if not isinstance(error, errors.ResponseError):
        return None
    code, _, _ = _text(error).partition(" ")
    return code


def is_answer(error: BaseException) -> bool:
    """Whether *error* is Redis's answer to a command, which it has not executed then."""
    return _code(error) is not None


def is_refusal(error: BaseException) -> bool:
    """Whether *error* is an answer that each further try would get as well."""
    code = _code(error)
    return code is not None and code not in _MAY_PASS


def passes(error: BaseException) -> bool:
    """Whether *error* is an answer that may be another one later, without anybody changing a setting."""
    return _code(error) in _MAY_PASS - {"NOAUTH", "WRONGPASS"}


def login_refused(error: BaseException) -> bool:
    """Whether Redis refused the user or password with *error*."""
    return _code(error) in ("NOAUTH", "WRONGPASS")


def refusal(
    error: BaseException, pool: str, message_id: str | None, *, one_queue: bool = False
) -> PublishRefused:
    """What to tell the caller in the place of *error*, an answer; it is of the same class as well.

    :param pool: the pool's name.
    :param message_id: the message's; of a batch of kombu's it is not known which one was refused.
    :param one_queue: whether the message was for one queue alone.
    """
    answer = (error.__cause__ if isinstance(error, _BATCHS) else None) or error
    code, text = _code(answer) or "", _text(answer)
    said = text if text.startswith(code) or code == "MAXCLIENTS" else f"{code} {text}"
    words = f"Redis refused it: {said}"
    remedy = _REMEDIES.get(code)
    if remedy is not None:
        words = f"{words.rstrip('.')}; {remedy}"
    if answer is not error:
        words = (
            "not all of the messages that a batch has sent together are in the broker, and it is not known which are; "
            f"{words.replace(' it:', ' one:', 1)}"
        )
        message_id = None
    elif one_queue:
        words = f"message {message_id} is not in the broker; {words}"
    else:
        words = (
            f"message {message_id} is not in one queue of its exchange at least, others may have it; "
            f"{words}"
        )
    refused = PublishRefused(words, message_id).like(error, answer)
    refused.pool = pool
    refused.__cause__ = error
    return refused
