"""Show URLs, options and other settings without the secrets in them.

If any way to read a URL makes a part of it a password, that part is masked. So a mistyped URL does not show its
password in the error that reports it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from kombu.transport import TRANSPORT_ALIASES

__all__ = ["MASK", "describe", "is_secret", "mask_url", "show", "split_urls"]

#: Stands for a secret, as in kombu's own ``as_uri()``.
MASK = "**"

#: The most characters of one value that a message quotes.
LONGEST = 80

#: The most levels of nested options that are shown.
DEEPEST = 5

_SECRET_WORDS = r"pass|pwd|secret|token|key|credential|auth|login_response|signature|\bsig\b"
_SECRET = re.compile(_SECRET_WORDS, re.IGNORECASE)
_SECRET_IN_QUERY = re.compile(rf"([?&][^=&?]*(?:{_SECRET_WORDS})[^=&]*=)[^&]*", re.IGNORECASE)
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"
#: The separator between two URLs of a list; a ';' in a password does not match.
_NEXT_URL = re.compile(rf";(?={_SCHEME}://)")

#: In URLs with these schemes, a name without a password is a user name. With others it may be a key, or a password
#: without its colon.
_USER_ALONE = frozenset({"amqp", "amqps", "pyamqp"})


def is_secret(name: str) -> bool:
    """Return whether a value called *name* is likely to be a secret."""
    return _SECRET.search(name) is not None


def mask_url(url: str) -> str:
    """Return *url*, or several URLs joined by ``;``, with ``**`` in place of each password.

    Masked are the text between a colon and the last ``@``, the values of query parameters whose names sound secret, a
    port that is not a number, and a user name if it may be something else. Text that is not a URL is masked as a whole.

    :param url: need not be valid.
    """
    return ";".join(map(_mask_one, split_urls(url)))


def split_urls(url: str) -> list[str]:
    """Split *url*, which may contain several URLs separated by ``;``."""
    return _NEXT_URL.split(url)


def _mask_one(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(_SCHEME, scheme):
        return MASK
    rest = _SECRET_IN_QUERY.sub(rf"\1{MASK}", rest)
    # The last @, because a password may contain an unescaped one.
    userinfo, at, rest = rest.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    name = scheme.lower().partition("+")[0]
    if user and name not in _USER_ALONE and not (colon and name in TRANSPORT_ALIASES):
        user = MASK
    login = f"{user}:{MASK}" if colon else user
    return f"{scheme}://{login}{at}{_mask_port(rest)}"


def _mask_port(rest: str) -> str:
    """Mask a port that is not a number, and all that follows: it may be a password in a URL without a host."""
    authority = re.match(r"(?:\[[^\]/?#]*\])?[^/?#:]*", rest)
    host = authority.group() if authority else ""
    port = re.match(r":[^/?#]*", rest[len(host) :])
    if port is None or re.fullmatch(r":\d+", port.group(), re.ASCII):
        return rest
    return f"{host}:{MASK}"


def describe(value: object) -> str:
    """Return *value* for a message: a number or text as it is written in Python, anything else as its type.

    URLs are masked. Containers are not shown, because anything in them may be a secret.
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
    """Return *value* for a ``repr``: nested options, with ``**`` for values whose names sound secret.

    :param levels: the most levels of nesting that are shown.
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
