"""How a topic exchange compares a binding's key with a message's: word by word."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["matches"]


def _words(key: str) -> list[str]:
    return key.split(".") if key else []


@lru_cache(maxsize=1024)
def matches(pattern: str, key: str) -> bool:
    """Whether *pattern* takes *key*: ``*`` is one word, ``#`` is zero words or more."""
    words = _words(key)
    # The numbers of words that may be used up so far.
    used = {0}
    for part in _words(pattern):
        if part == "#":
            used = set(range(min(used), len(words) + 1))
        else:
            used = {at + 1 for at in used if at < len(words) and part in ("*", words[at])}
        if not used:
            return False
    return len(words) in used
