"""What was published, in its order, and assertions about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from .matching import Expected, described
from .publication import Publication

__all__ = ["Published"]


class Published(Sequence[Publication]):
    """The messages that came to brokers in memory, the first one first.

    It is like a list. What is published while a test looks at it is added at the end.
    """

    def __init__(self, publications: Iterable[Publication] = ()) -> None:
        self._publications: list[Publication] = list(publications)
        self._on_commit: set[str] = set()

    @overload
    def __getitem__(self, index: int) -> Publication: ...
    @overload
    def __getitem__(self, index: slice) -> Published: ...
    def __getitem__(self, index: int | slice) -> Publication | Published:
        if isinstance(index, slice):
            return Published(self._publications[index])
        return self._publications[index]

    def __len__(self) -> int:
        return len(self._publications)

    def __iter__(self) -> Iterator[Publication]:
        return iter(tuple(self._publications))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Published | list):
            return list(self) == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # like a list

    def __repr__(self) -> str:
        lines = "".join(f"\n  {described(one)}" for one in self)
        return f"<Published: {len(self)}{lines}>"

    def add(self, publication: Publication) -> None:
        """Add *publication* at the end."""
        self._publications.append(publication)

    def expect_after_commit(self, id: str) -> None:
        """Note that the message or task with this id has waited for a commit; it is about to be published."""
        self._on_commit.add(id)

    def was_expected(self, *ids: object) -> bool:
        """Whether a message with one of these ids has waited for a commit."""
        return not self._on_commit.isdisjoint(ids)

    def clear(self) -> None:
        """Forget what was published."""
        self._publications.clear()
        self._on_commit.clear()

    # -- choosing -----------------------------------------------------------------------------------------

    def to(self, name: str) -> Published:
        """Return the messages that were published to the exchange *name*, or that have reached the queue *name*."""
        return Published(one for one in self if name == one.exchange or name in one.queues)

    def matching(self, **expected: Any) -> Published:
        """Return the messages that are as *expected*: the arguments of :meth:`assert_published` say how."""
        wanted = Expected(**expected)
        return Published(filter(wanted.matches, self))

    def one(self) -> Publication:
        """Return the only message.

        :raises AssertionError: if there is none, or more than one.
        """
        if len(self) != 1:
            raise AssertionError(f"not one message, but {self!r}")
        return self[0]

    # -- asserting ----------------------------------------------------------------------------------------

    def assert_published(self, *, times: int | None = None, **expected: Any) -> Published:
        """Assert that a message was published as *expected*.

        A value is compared with that of the message; a matcher such as ``unittest.mock.ANY`` compares itself, and a
        function is called with it. *headers* and *properties* are dicts, of which those that are named count.

        :param times: how many; ``None`` is one or more.
        :param expected: any of *body*, *exchange*, *routing_key*, *headers*, *properties*, *using* (the alias),
            *queue* (one that it has reached), *outcome*, *on_commit*, and *task* (the name of a Celery task).
        :returns: the messages.
        :raises AssertionError: if there is none, or another number of them. It shows what was published instead, the
            nearest first.
        :raises TypeError: for another keyword.
        """
        wanted = Expected(**expected)
        found = Published(filter(wanted.matches, self))
        if times is None and not found:
            raise AssertionError(f"not published: {wanted}\n{wanted.told(list(self))}")
        if times is not None and len(found) != times:
            if found:
                raise AssertionError(
                    f"published {len(found)} times, and not {times} times: {wanted}\n{found!r}"
                )
            raise AssertionError(
                f"not published {times} times: {wanted}\n{wanted.told(list(self))}"
            )
        return found

    def assert_nothing_published(self, **expected: Any) -> None:
        """Assert that no message was published, or none as *expected*.

        :param expected: as for :meth:`assert_published`.
        :raises AssertionError: if there is one.
        """
        found = self.matching(**expected)
        if found:
            raise AssertionError(f"published: {found!r}")
