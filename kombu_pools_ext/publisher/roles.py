"""Roles that one participant has at a time, without a lock."""

from __future__ import annotations

__all__ = ["LEAD", "WRITE", "Roles"]

#: Reads for all, and does what needs an answer: connects, opens channels, declares.
LEAD = "lead"
#: Numbers messages, and writes them.
WRITE = "write"


class Roles:
    """Who has which role.

    Taking and giving back are single steps of the interpreter, and the record says who has it. So a participant that is
    interrupted right after the taking, by an exception that is thrown into its thread, still finds its own role there
    when it leaves. A lock would be lost.
    """

    __slots__ = ("_holders",)

    def __init__(self) -> None:
        self._holders: dict[str, object] = {}

    def take(self, role: str, me: object) -> bool:
        """Take *role* unless another one has it; return whether *me* has it now."""
        return self._holders.setdefault(role, me) is me

    def give_back(self, role: str, me: object) -> None:
        """Give *role* back if *me* has it."""
        if self._holders.get(role) is me:
            del self._holders[role]

    def give_all_back(self, me: object) -> None:
        """Give every role back that *me* has."""
        # Mostly nobody has one.
        if self._holders:
            self.give_back(WRITE, me)
            self.give_back(LEAD, me)

    def is_free(self, role: str) -> bool:
        """Whether nobody has *role*."""
        return role not in self._holders

    def has(self, role: str, me: object) -> bool:
        """Whether *me* has *role*."""
        return self._holders.get(role) is me
