"""What a probe has found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .condition import Condition

__all__ = ["AliasReadiness", "Readiness"]


@dataclass(frozen=True)
class AliasReadiness:
    """How one alias is."""

    alias: str
    condition: Condition
    #: Why it is not OK, without a password, but with the broker's address perhaps; ``None`` if it is.
    reason: str | None = None


@dataclass(frozen=True)
class Readiness:
    """How the aliases are that a probe was asked about."""

    aliases: Sequence[AliasReadiness]

    @property
    def condition(self) -> Condition:
        """The worst of them; OK if there are none."""
        return max(
            (one.condition for one in self.aliases),
            key=lambda one: one.rank,
            default=Condition.OK,
        )

    def as_dict(self, *, with_reasons: bool) -> dict[str, Any]:
        """Return it as plain data.

        :param with_reasons: whether it says why; reasons may name brokers.
        """
        told: dict[str, Any] = {
            "condition": str(self.condition),
            "aliases": {one.alias: str(one.condition) for one in self.aliases},
        }
        if with_reasons:
            told["reasons"] = {one.alias: one.reason for one in self.aliases if one.reason}
        return told
