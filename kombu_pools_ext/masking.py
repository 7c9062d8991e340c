"""Showing values without the secrets in them: URLs, options, whatever somebody wrote into the settings.

Where a URL can be read in two ways, one of which has a password in a place that the other shows, it is read in that
way: a mistyped URL must not print its password in the error that reports it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from kombu.transport import TRANSPORT_ALIASES

__all__ = ["MASK", "describe", "is_secret", "mask_url", "show", "split_urls"]

#: Stands for a secret; what kombu's own ``as_uri()`` prints.
MASK = "**"

#: Characters of one value that a message quotes.
LONGEST = 80

#: Levels of nested options that are shown.
DEEPEST = 5

_SECRET_WORDS = r"pass|pwd|secret|token|key|credential|auth|login_response|signature|\bsig\b"
_SECRET = re.compile(_SECRET_WORDS, re.IGNORECASE)
_SECRET_IN_QUERY = re.compile(rf"([?&][^=&?]*(?:{_SECRET_WORDS})[^=&]*=)[^&]*", re.IGNORECASE)
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"
#: Between two URLs of a list, and not in a password.
_NEXT_URL = re.compile(rf";(?={_SCHEME}://)")

#: With these, a name that no password follows is a user's. With others it may be a key, or a password that lacks
#: its colon.
_USER_ALONE = frozenset({"amqp", "amqps", "pyamqp"})


def is_secret(name: str) -> bool:
    """Whether what is stored under *name* is likely to be a secret."""
    return _SECRET.search(name) is not None


def mask_url(url: str) -> str:
    """*url*, or a list of URLs joined by ``;``, with ``**`` for every password.

    That is whatever stands before the last ``@`` and after a colon, the values of secret-sounding query parameters,
    a port that is not a number, and a user's name where it may be something else. Text that is no URL is masked whole.

    :param url: need not be valid.
    """
    return ";".join(map(_mask_one, split_urls(url)))


def split_urls(url: str) -> list[str]:
    """The URLs in *url*, which may hold several, separated by ``;``: but none may begin within a password."""
    return _NEXT_URL.split(url)


def _mask_one(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(_SCHEME, scheme):
        return MASK
    rest = _SECRET_IN_QUERY.sub(rf"\1{MASK}", rest)
    # The last @: an unescaped one in a password would else end it too early.
    userinfo, at, rest = rest.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    name = scheme.lower().partition("+")[0]
    if user and name not in _USER_ALONE and not (colon and name in TRANSPORT_ALIASES):
        user = MASK
    login = f"{user}:{MASK}" if colon else user
    return f"{scheme}://{login}{at}{_mask_port(rest)}"


def _mask_port(rest: str) -> str:
    """Mask from a port that is not one: it may be a password that lacks its host."""
    authority = re.match(r"(?:\[[^\]/?#]*\])?[^/?#:]*", rest)
    host = authority.group() if authority else ""
    port = re.match(r":[^/?#]*", rest[len(host) :])
    if port is None or re.fullmatch(r":\d+", port.group(), re.ASCII):
        return rest
    return f"{host}:{MASK}"


def describe(value: object) -> str:
    """*value* for a message: a number or short text as it is written in Python, anything else by its type.

    URLs in it are masked, and containers are not shown: whatever they hold may be a secret.
    """
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        # Python refuses to print ints of thousands of digits.
        return repr(value) if value.bit_length() <= 64 else f"an int of {value.bit_length()} bits"
    if isinstance(value, str):
        text = repr(mask_url(value) if "://" in value or "@" in value else value)
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def show(value: object, levels: int = DEEPEST) -> str:
    """*value* for a ``repr``: nested options with ``**`` for what is kept under a secret-sounding name.

    :param levels: of nesting that are shown.
    """
    if isinstance(value, Mapping):
        if not levels:
            return "{…}"
        items = (
            f"{describe(key)}: {MASK if is_secret(str(key)) else show(one, levels - 1)}"
            for key, one in value.items()
        )
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{', '.join(show(one, levels - 1) for one in value)}]" if levels else "[…]"
    if value is None or isinstance(value, bool | int | float | str):
        return describe(value)
    return f"<{type(value).__name__}>"
