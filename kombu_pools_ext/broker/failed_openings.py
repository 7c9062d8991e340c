"""What an attempt to connect has failed with, and whether another one may do better."""

from __future__ import annotations

import ssl
from typing import Any

import amqp
from kombu.exceptions import OperationalError

from ..engine.loaded import loaded
from . import tls
from .credentials import CredentialsFailed
from .redis_answers import login_refused, passes

__all__ = ["NotConnected", "WrongProtocol", "is_login_refused", "may_pass"]

#: Reply codes of a broker that says no for good: it would again, unless somebody changes something.
_REFUSALS = frozenset({402, 403, 404, 501, 502, 503, 504, 505, 530, 540})
#: What RabbitMQ says when the virtual host, user or node has reached its limit of connections, or the user or node that
#: of channels: a refusal which passes when one of them closes.
_LIMITS = (
    "connection limit (",
    "number of channels opened for user",
    "number of channels opened on node",
)

#: TLS that ended, or did not, in the middle of a handshake: a server looks like that which stops or starts.
_CUT_SHORT = (
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
    ssl.SSLSyscallError,
    ssl.SSLWantReadError,
    ssl.SSLWantWriteError,
)


class WrongProtocol(ConnectionError):
    """What answers is no AMQP 0-9-1 broker; it will not be one when asked again."""


class NotConnected(OperationalError):
    """No broker could be connected to; the cause is the last one's error."""

    #: What each broker's attempt ended with, in the order in which they were tried.
    failures: tuple[BaseException, ...] = ()


def may_pass(error: BaseException) -> bool:
    """Whether an opening that failed with *error* may succeed later without anybody changing anything.

    A broker that is down, slow or unknown to the name server may come back. A password, a virtual host or a
    certificate that is refused stays so, and what speaks no AMQP will not learn it.
    """
    if isinstance(error, CredentialsFailed):
        return True
    if isinstance(error, NotConnected):
        return any(map(may_pass, error.failures))
    if isinstance(error, OperationalError):
        # Somebody else's wrapping of what a transport raised.
        return error.__cause__ is None or may_pass(error.__cause__)
    if isinstance(error, WrongProtocol):
        return False
    found = tls.tls_error(error)
    if found is not None:
        # Says nothing about anybody's certificate.
        return isinstance(found, _CUT_SHORT) or "timed out" in str(found)
    if isinstance(error, amqp.exceptions.AMQPError):
        if any(words in str(error) for words in _LIMITS):
            return True
        code: int = getattr(error, "reply_code", 0)
        # What py-amqp says itself has none, and what is worth another try is of a class of its own.
        named = code != 0 or isinstance(error, amqp.exceptions.RecoverableConnectionError)
        return named and code not in _REFUSALS
    if isinstance(error, FileNotFoundError):
        return False
    return isinstance(error, OSError | MemoryError) or _redis_may_pass(error)


def is_login_refused(error: BaseException) -> bool:
    """Whether a broker refused the user or password with *error*."""
    if isinstance(error, NotConnected):
        return any(map(is_login_refused, error.failures))
    return isinstance(error, amqp.exceptions.AccessRefused) or login_refused(error)


def _redis_may_pass(error: BaseException) -> bool:
    if passes(error):
        return True
    errors: Any = loaded("redis.exceptions")
    return (
        errors is not None
        and isinstance(error, errors.RedisError)
        # The plain one is an answer to what we asked for: a database that is not there. Its kinds have names.
        and type(error) is not errors.ResponseError
        and not isinstance(
            error,
            errors.AuthenticationError
            | errors.AuthorizationError
            | errors.NoPermissionError
            | errors.AuthenticationWrongNumberOfArgsError,
        )
    )
