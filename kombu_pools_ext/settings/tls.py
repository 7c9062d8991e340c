"""Check the TLS options in ``SSL``."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..masking import describe
from .problems import nearest, suggestion, text_hint
from .urls import tls_in_url

__all__ = ["AMQP_OPTIONS", "REDIS_OPTIONS", "tls_problems"]

#: The options of py-amqp's ``SSLTransport``, and ``check_hostname``, which this library adds.
AMQP_OPTIONS = (
    "ca_certs",
    "cert_reqs",
    "certfile",
    "check_hostname",
    "ciphers",
    "context",
    "do_handshake_on_connect",
    "keyfile",
    "server_hostname",
    "server_side",
    "ssl_version",
    "suppress_ragged_eofs",
    "tls_maximum_version",
    "tls_minimum_version",
)

#: The options of redis-py's ``SSLConnection``; older versions lack the verify flags.
REDIS_OPTIONS = (
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_ciphers",
    "ssl_exclude_verify_flags",
    "ssl_include_verify_flags",
    "ssl_keyfile",
    "ssl_min_version",
    "ssl_ocsp_context",
    "ssl_ocsp_expected_cert",
    "ssl_password",
    "ssl_validate_ocsp",
    "ssl_validate_ocsp_stapled",
)

#: The arguments of ``ssl.create_default_context``, and ``check_hostname``. py-amqp takes a dict of them as ``context``.
_CONTEXT_OPTIONS = ("cadata", "cafile", "capath", "check_hostname", "purpose")

_MODES = "ssl.CERT_REQUIRED, ssl.CERT_OPTIONAL or ssl.CERT_NONE"
_MODE_NAMES = ("required", "optional", "none")


def tls_problems(
    options: Mapping[str, Any], implementation: str, urls: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the TLS *options*: a message without secrets, and a hint.

    :param implementation: kombu's module for the transport. Only the options of AMQP and Redis are checked.
    :param urls: the pool's URLs.
    """
    known: tuple[str, ...]
    if implementation == "pyamqp":
        known, prefix = AMQP_OPTIONS, ""
    elif implementation == "redis":
        known, prefix = REDIS_OPTIONS, "ssl_"
    else:
        return
    for name in options:
        if name not in known:
            yield f"{describe(name)} is not a TLS option here", nearest(name, known)
    for name in ("ca_certs", "certfile", "keyfile"):
        yield from _file_problems(prefix + name, options.get(prefix + name))
    if options.get(f"{prefix}keyfile") and not options.get(f"{prefix}certfile"):
        yield (
            f"'{prefix}keyfile' is given without '{prefix}certfile'",
            "a key is of no use without its certificate",
        )
    yield from _check_problems(options, prefix)
    host = options.get("server_hostname")
    if host is not None and not (isinstance(host, str) and host):
        yield f"expected a name or None for 'server_hostname', got {describe(host)}", ""
    yield from _context_problems(options.get("context"))
    if implementation == "redis" and any(map(tls_in_url, urls)):
        # kombu would use only those in the URL.
        yield (
            "the URL has TLS options as well, which would replace these",
            "write all of them here",
        )


def _file_problems(name: str, path: Any) -> Iterator[tuple[str, str]]:
    if path is None:
        return
    if not isinstance(path, str | os.PathLike):
        yield f"expected the path of a file for {name!r}, got {describe(path)}", ""
    elif not _is_file(path):
        yield (
            f"{name!r} is not the path of a file: {describe(os.fspath(path))}",
            "a relative path begins at the working directory",
        )


def _is_file(path: str | os.PathLike[str]) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:
        return False  # the path contains a null character


def _check_problems(options: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    name = f"{prefix}cert_reqs"
    mode: Any = options.get(name)
    if prefix and isinstance(mode, str):
        if mode not in _MODE_NAMES:
            hint = nearest(mode, _MODE_NAMES)
            yield f"expected {_MODES} for {name!r}, got {describe(mode)}", hint
    elif mode is not None and not isinstance(mode, ssl.VerifyMode):
        meant = mode.lower() if isinstance(mode, str) else ""
        hint = suggestion(f"ssl.CERT_{meant.upper()}") if meant in _MODE_NAMES else ""
        yield f"expected {_MODES} for {name!r}, got {describe(mode)}", hint
    checks = options.get(f"{prefix}check_hostname")
    if checks is not None and not isinstance(checks, bool):
        expected = "True or False"
        yield (
            f"expected {expected} for '{prefix}check_hostname', got {describe(checks)}",
            text_hint(checks, expected),
        )
    elif checks and (mode == "none" or mode == ssl.CERT_NONE) and mode is not None:
        yield (
            f"'{prefix}check_hostname' has no effect with {name!r} of ssl.CERT_NONE",
            "a certificate that is not verified proves nothing: remove one of them",
        )


def _context_problems(context: Any) -> Iterator[tuple[str, str]]:
    if context is None:
        return
    if not isinstance(context, Mapping):
        yield (
            f"expected a dict of the arguments of ssl.create_default_context for 'context', got {describe(context)}",
            "",
        )
        return
    for name in context:
        if name not in _CONTEXT_OPTIONS:
            hint = nearest(name, _CONTEXT_OPTIONS) if isinstance(name, str) else ""
            yield f"{describe(name)} is not an argument of ssl.create_default_context", hint
