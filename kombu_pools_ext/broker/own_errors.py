"""Telling an error of our own socket from one that only passes by.

Python's signal handlers run between any two steps, so what they raise (Celery's soft time limit, an alarm's
``TimeoutError``) comes out of a read or a write as if the socket had failed. And what leaves a borrower's block may be
the failure of quite another socket. So an error is looked at twice: where it was raised, by the modules that its
traceback ends in; and whose it is, by a mark that a connection's own reads and writes leave on it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

__all__ = ["is_marked", "mark", "passed_through", "raised_by_library", "raised_within"]

#: The packages that do the messaging. What is raised elsewhere was raised by somebody who interrupted.
LIBRARIES = frozenset(
    {"amqp", "kombu", "vine", "redis", "ssl", "socket", "selectors", "gevent", "eventlet"}
    | {__name__.partition(".")[0]}
)
#: The functions of py-amqp and kombu in which the application's callbacks run.
_CALLS_BACK = frozenset({"_on_basic_deliver", "_on_basic_return", "_on_basic_cancel", "receive"})
#: The attribute that holds the mark.
_MARK = "_kombu_pools_socket"


def _modules(error: BaseException) -> Iterator[tuple[str, str]]:
    """Module and function of each frame that *error* came through, the one that raised it last."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        yield str(frame.f_globals.get("__name__", "")), frame.f_code.co_name
        trace = trace.tb_next


def _raiser(error: BaseException) -> str | None:
    """The package whose code raised *error*; ``None`` if nobody did yet."""
    modules = [module for module, _ in _modules(error)]
    return modules[-1].partition(".")[0] if modules else None


def raised_by_library(error: BaseException, others: Container[str] = ()) -> bool:
    """Whether a messaging library raised *error*, and not a signal handler or a callback of the application.

    An exception without a traceback was raised by nobody yet, and counts as a library's.

    :param others: packages that do the messaging besides the usual ones.
    """
    package = _raiser(error)
    return package is None or package in LIBRARIES or package in others


def raised_within(error: BaseException, package: str) -> bool:
    """Whether code of *package* raised *error*, and nothing that this code had called."""
    return _raiser(error) == package


def passed_through(error: BaseException, *packages: str) -> bool:
    """Whether *error* left code of one of *packages*, and did not come out of a callback that this code had called."""
    inside = False
    for module, function in _modules(error):
        if module.partition(".")[0] in packages:
            if function in _CALLS_BACK:
                return False
            inside = True
    return inside


def mark(error: BaseException, below: object) -> None:
    """Note on *error* that the socket under *below* raised it.

    :param below: the transport (AMQP) or the bounds (Redis) of one connection. Only its number is kept, so that an
        error that is kept keeps no connection, and can be pickled.
    """
    setattr(error, _MARK, id(below))


def is_marked(error: BaseException | None, below: object) -> bool:
    """Whether *error*, or what caused it, was raised by the socket under *below*."""
    seen: set[int] = set()
    number = id(below)
    todo = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if getattr(one, _MARK, None) == number:
            return True
        todo += (one.__cause__, one.__context__)
    return False
