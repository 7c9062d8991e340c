"""Call ``CREDENTIALS`` for the user and password of one connection, in a thread of its own.

The function may depend on a server that is down, slow or silent. So an opening waits for the answer only within its own
time-out; and while one call is overdue, the pool starts no other.
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

from ..engine.log_handlers import while_busy
from ..engine.threads import spawn_thread
from ..settings import PoolSettings
from ..settings.credentials import EXAMPLE, module_and_name

__all__ = ["Credentials", "CredentialsFailed", "Login"]

#: The name of a thread that asks.
THREAD = "kombu-pools-credentials"

_REMEDY = "it is called again for the next connection; open connections stay open"
_EXPECTED = (
    "expected a password, or a tuple of user and password, each of them a text that is not empty"
)


class CredentialsFailed(OperationalError):
    """``CREDENTIALS`` has raised an error, which is ``__cause__``, or has not answered in time."""


class Login(NamedTuple):
    """What ``CREDENTIALS`` returned."""

    #: ``None`` if it was a password alone.
    user: str | None
    password: str

    def __repr__(self) -> str:
        return "<Login>"


class _Question:
    """One call, which may last longer than the openings that wait for it."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask = ask
        self._answered = threading.Event()
        # In a forked child, a call of the parent never ends.
        self._pid = os.getpid()
        self._answer: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            # A log handler may publish what the function logs, and would wait for this very connection.
            self._answer = while_busy(self._ask)
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
    """The ``CREDENTIALS`` of one pool.

    :param source: a function without arguments, or its dotted path, which is imported at the first call.
    :param names_user: whether the URLs name the user.
    """

    @classmethod
    def of(cls, settings: PoolSettings) -> Credentials | None:
        """Return the credentials of a pool with *settings*; ``None`` if it has none."""
        source = settings.credentials if settings.asks_for_credentials else None
        return None if source is None else cls(source, names_user=settings.names_user)

    def __init__(self, source: str | Callable[[], Any], *, names_user: bool) -> None:
        self._source = source
        self._names_user = names_user
        self._function: Callable[[], Any] | None = None if isinstance(source, str) else source
        #: A call that has not answered in time; another one would not either.
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
        """Call the function and return its answer; not to be called under a lock.

        :param seconds: how long to wait for the answer at most.
        :param needs_user: whether the answer must name a user if the URLs name none.
        :raises CredentialsFailed: if the function raises an error, or does not answer in time.
        :raises TypeError, ValueError: if it returns something else than credentials.
        :raises ImportError: if there is no function at the dotted path.
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
        # Only its class is shown, because its text may contain a secret. The error itself is the cause.
        return CredentialsFailed(f"{self._name} raised {type(error).__name__}; {_REMEDY}")

    def load(self) -> Callable[[], Any]:
        """Return the function; import it first if its path was given.

        :raises ImportError, TypeError: if there is no function at that path.
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
        # A provider of redis-py may return a tuple of the password alone.
        given = answer if isinstance(answer, tuple | list) else (answer,)
        user, password = (None, *given)[-2:] if given else (None, None)
        # A wrong value is shown by its type only.
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
                f"{self._name} returned no user, and there is none in URL or USER: return (user, password), or set "
                "USER"
            )
        return Login(user or None, password)

    def __repr__(self) -> str:
        return f"<{self._name}>"
