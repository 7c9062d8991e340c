"""What is lent, and to whom; and when the lock need not be taken for that."""

from __future__ import annotations

from typing import Any, TypeVar

from .lease import Entry, Lease, Share
from .state import State

__all__ = ["Loans"]

T = TypeVar("T")


class Loans(State[T]):
    """The part of the :class:`~.ledger.Ledger` that is about loans."""

    # -- loans ---------------------------------------------------------------------------------------

    def take_idle(
        self, share: Share | None, now: float, kind: type[Lease[Any]] = Lease
    ) -> Lease[T] | None:
        """Count a caller, and lend the warmest idle entry, unless somebody waits: nobody is overtaken."""
        self.callers += 1
        if share is not None and not share.open:
            self._look_at(share)
        if self.waiters or self.shut or (share is not None and not share.has_room()):
            return None
        self.calm_down()
        return self._lend(share, now, kind)

    def _lend(self, share: Share | None, now: float, kind: type[Lease[Any]]) -> Lease[T] | None:
        try:
            entry = self.idle.pop()
        except IndexError:
            return None
        # Should this thread be killed from here on, the entry dies with it, and its end brings it home.
        entry.engine = self.pool
        entry.loan += 1
        self.loans += 1
        entry.taken_at = now
        # Who asked, says so when he has it.
        entry.code = None
        if entry.share is not share:
            if entry.share is not None:
                entry.share.lent.drop(entry)
            entry.share = share
        if share is not None and not share.open:
            share.lent.keep(entry)
        lease: Lease[T] = kind()
        lease._engine = self.pool
        lease._entry = entry
        lease._claim = True
        return lease

    def take_back(self, entry: Entry[T], broken: str | None) -> str | None:
        """End the loan of *entry*; the reason for which it must be closed now, or ``None``."""
        if entry.share is not None:
            entry.share.lent.drop(entry)
        entry.stack = None
        if broken == "broken":
            # What broke this one may have broken the others: a borrower who tries again must not meet them all.
            self.suspect_all()
        reason = broken
        if reason is None:
            reason = self.reason_to_close(entry)
            if reason is None and not self.keep:
                reason = "not kept"
            if reason in ("drained", "not kept") and self.replaced and self.waiters.next():
                # The returned item works, whereas a new one might not.
                reason = None
        if reason is None:
            entry.used_at = self.clock()
            # Until here, an entry that dies with its lease comes home.
            entry.engine = None
            self.idle.append(entry)
        else:
            self.begin_closing(entry)
        return reason

    def begin_closing(self, entry: Entry[T]) -> None:
        """*entry* is in no container: whoever called is to close it, and holds it until then."""
        self.past_loans += entry.loan
        entry.loan = 0
        entry.engine = None
        self.closing.keep(entry)

    def reason_to_close(self, entry: Entry[T]) -> str | None:
        """Why *entry* must not stay."""
        if self.closed:
            return "closed"
        if entry.outdated:
            return "drained"
        if self.shrunk:
            if self.limit is not None and self.size > self.limit:
                return "limit"
            self.shrunk = False
        return None

    def suspect_all(self) -> None:
        """One was found dead; what killed it may have killed the others: check them, however fresh."""
        for entry in self.held.alive():
            entry.suspect = True

    # -- the short way ---------------------------------------------------------------------------------

    def disturb(self) -> None:
        """Have everybody come by the lock: before a change that nobody on the short way may miss.

        Whoever is on it finds out at its end, and puts right what he has done.
        """
        self.pool.calm = None

    def calm_down(self) -> None:
        """Open the short way again, where nothing is out of the ordinary."""
        pool = self.pool
        if pool.calm is not None or self.waiters or self.shut or self.shrunk or not self.keep:
            return
        # Another one each time: whoever was on the way before must notice.
        pool.calm = object()
        if pool.inbox:
            # A word that came in between has to be heeded; one that comes from here on disturbs by itself.
            pool.calm = None

    def _look_at(self, share: Share) -> None:
        """Whether anything can hold up leases with *share*."""
        self.shares.keep(share)
        limit = share.limit
        fits = limit is None or (self.limit is not None and limit >= self.limit)
        if fits and not share.blocked and not self.shrunk:
            share.open = True
            share.lent.clear()

    def look_at_shares(self) -> None:
        """Count what is lent with each share: from now on its gate, or its limit, may hold its leases up."""
        self.disturb()
        lent = self.lent
        for share in self.shares.alive():
            share.open = False
            share.lent.clear()
            for entry in lent:
                if entry.share is share:
                    share.lent.keep(entry)
