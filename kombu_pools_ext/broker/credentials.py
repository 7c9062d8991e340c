"""Asking ``CREDENTIALS``: user and password for one connection, within its time, in a thread of its own.

Whoever is asked may be another server, which is down, slow or silent. So a connection that is being made waits for the
answer as long as it may take itself, and no longer; and as long as one question is overdue, no further one is asked.
"""

from __future__ import annotations

import importlib
import inspect
import os
import threading
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

from kombu.exceptions import OperationalError

from ..engine.log_handlers import busy
from ..engine.threads import spawn_thread
from ..settings import PoolSettings
from ..settings.credentials import EXAMPLE, module_and_name

__all__ = ["Credentials", "CredentialsFailed", "Login"]

#: The name of a thread that asks.
THREAD = "kombu-pools-credentials"

_REMEDY = "it is asked again for the next connection, and those that are open stay"
_EXPECTED = "expected a password, or a tuple of user and password, each a text that is not empty"


class CredentialsFailed(OperationalError):
    """``CREDENTIALS`` raised an error, which is the cause, or has not answered."""


class Login(NamedTuple):
    """What was answered."""

    #: ``None`` if it was a password alone.
    user: str | None
    password: str

    def __repr__(self) -> str:
        return "<Login>"


class _Question:
    """One call, which may outlive whoever waits for it."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask = ask
        self._answered = threading.Event()
        # Of a forked child's parent nobody answers.
        self._pid = os.getpid()
        self._answer: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            # What it logs may be published by a handler, for which this connection would be waited for.
            with busy():
                self._answer = self._ask()
        except BaseException as error:
            self._error = error
        finally:
            self._answered.set()

    @property
    def is_open(self) -> bool:
        return self._pid == os.getpid() and not self._answered.is_set()

    def wait(self, seconds: float) -> Any:
        """The answer.

        :raises TimeoutError: if there is none within *seconds*.
        :raises BaseException: what the call has raised.
        """
        if not self._answered.wait(seconds):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._answer


class Credentials:
    """What one pool asks.

    :param source: a function without arguments, or its dotted path, which is imported when it is first asked.
    :param names_user: whether the URLs name the user.
    """

    @classmethod
    def of(cls, settings: PoolSettings) -> Credentials | None:
        """What a pool with *settings* asks; ``None`` if nothing."""
        source = settings.credentials if settings.asks_for_credentials else None
        return None if source is None else cls(source, names_user=settings.names_user)

    def __init__(self, source: str | Callable[[], Any], *, names_user: bool) -> None:
        self._source = source
        self._names_user = names_user
        self._function: Callable[[], Any] | None = None if isinstance(source, str) else source
        #: A question that was not answered in time: a further one would be overdue, too.
        self._overdue: _Question | None = None

    @property
    def _name(self) -> str:
        source = self._source
        if not isinstance(source, str):
            module = getattr(source, "__module__", None)
            name = getattr(source, "__qualname__", None) or type(source).__qualname__
            source = f"{module}.{name}" if module else name
        return f"CREDENTIALS ({source})"

    def ask(self, seconds: float, *, needs_user: bool) -> Login:
        """Ask, outside of any lock.

        :param seconds: the longest to wait for the answer.
        :param needs_user: whether one without a user is no answer, where the URLs name none either.
        :raises CredentialsFailed: if it raises an error, or has not answered.
        :raises TypeError, ValueError: if what it returns is nothing of the kind.
        :raises ImportError: if there is none at the dotted path.
        """
        function = self.load()
        question = self._overdue
        if question is None or not question.is_open:
            question = _Question(function)
            if not spawn_thread(question.run, THREAD):
                question.run()
        try:
            answer = question.wait(seconds)
        except TimeoutError as error:
            if question.is_open:
                self._overdue = question
                raise CredentialsFailed(
                    f"{self._name} has not answered within {seconds:.3g} s; does it wait for something? {_REMEDY}"
                ) from None
            raise self._failed(error) from error
        except BaseException as error:
            raise self._failed(error) from error
        return self._login(answer, needs_user)

    def _failed(self, error: BaseException) -> CredentialsFailed:
        # By its class alone: what it says may have a secret in it. It is the cause.
        return CredentialsFailed(f"{self._name} raised {type(error).__name__}; {_REMEDY}")

    def load(self) -> Callable[[], Any]:
        """The function that is asked; imports it, where its path was given.

        :raises ImportError, TypeError: if there is none at that path.
        """
        if self._function is not None:
            return self._function
        module, name = module_and_name(str(self._source)) or ("", "")
        try:
            function = attrgetter(name)(importlib.import_module(module))
        except (ImportError, AttributeError) as error:
            raise ImportError(f"{self._name} cannot be imported: {error}") from error
        if not callable(function):
            raise TypeError(
                f"{self._name} is a value of type {type(function).__name__}; expected {EXAMPLE}"
            )
        self._function = function
        return self._function

    def _login(self, answer: Any, needs_user: bool) -> Login:
        # As a provider of redis-py answers: the password alone may be a tuple, too.
        given = answer if isinstance(answer, tuple | list) else (answer,)
        user, password = (None, *given)[-2:] if given else (None, None)
        # Of what is wrong no more is told than its type.
        if len(given) > 2 or not isinstance(password, str) or not isinstance(user, str | None):
            if inspect.iscoroutine(answer):
                answer.close()
            kinds = ", ".join(type(one).__name__ for one in given)
            what = f"a {type(answer).__name__} of {kinds or 'nothing'}"
            raise TypeError(
                f"{self._name} returned {what if given is answer else f'a value of type {kinds}'}; {_EXPECTED}"
            )
        if not password or "\0" in password or "\0" in (user or ""):
            raise ValueError(
                f"{self._name} returned a text that is empty, or has a null character in it; {_EXPECTED}"
            )
        if needs_user and not user and not self._names_user:
            raise ValueError(
                f"{self._name} returned no user, and there is none in URL or USER: return (user, password), or name it "
                "there"
            )
        return Login(user or None, password)

    def __repr__(self) -> str:
        return f"<{self._name}>"
