"""TLS: the name that a certificate must be made out to, and what to do when it is not accepted.

By itself, py-amqp accepts any certificate that a known authority has signed: it compares and sends (SNI) a name only if
it is given one. Here the name is always sent, whether it is compared or not.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = [
    "chain",
    "checks_name",
    "for_host",
    "forget_errors",
    "remedy",
    "tls_error",
    "wrap_unchecked",
]

#: OpenSSL's ``X509_V_ERR_…``.
_WRONG_NAME = {62, 64}
_WRONG_TIME = {9, 10}
_UNKNOWN_SIGNER = {2, 18, 19, 20, 21}

#: Options of py-amqp's that are files; redis-py's own error names them.
_FILES = ("ca_certs", "certfile", "keyfile")

#: OpenSSL's reasons where the peer speaks something else.
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


#: Only for `forget_errors`.
_ANY_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def forget_errors() -> None:
    """Empty this thread's queue of OpenSSL's errors; 12 µs.

    CPython may leave the error of a failed system call in it (Python 3.14 with OpenSSL 3.6 does). The next read in this
    thread, on another connection, would raise that error instead of waiting.
    """
    try:
        _ANY_CONTEXT.set_ciphers("-")  # no cipher has this name, and the look-up clears the queue
    except ssl.SSLError:
        pass


def checks_name(options: Any) -> bool:
    """Whether the certificate's name is compared with *options*, kombu's ``ssl`` for AMQP.

    They do unless they turn it off, with ``cert_reqs=ssl.CERT_NONE`` or with ``check_hostname=False``.
    """
    if not isinstance(options, Mapping):
        return True
    context = options.get("context")
    inner = context if isinstance(context, Mapping) else {}
    checks = inner.get("check_hostname", options.get("check_hostname", True))
    return bool(checks) and options.get("cert_reqs") != ssl.CERT_NONE


def for_host(options: Any, host: str | None) -> Any:
    """kombu's ``ssl`` for one AMQP broker: *options*, with the host's name, which is sent, and :func:`checks_name`.

    :param options: ``False``, ``True`` or a dict for py-amqp; is not changed.
    :param host: as it stands in the URL.
    """
    if not options:
        return options
    wanted = dict(options) if isinstance(options, Mapping) else {}
    checks = wanted.pop("check_hostname", True)
    context = wanted.get("context")
    if isinstance(context, Mapping) and context:
        wanted["context"] = {"check_hostname": checks, **context}
        # Else hands are shaken while the socket is wrapped, and eventlet forgets one whose handshake fails.
        wanted.setdefault("do_handshake_on_connect", False)
    if wanted.get("server_hostname") is None:
        wanted["server_hostname"] = host
    return wanted


def wrap_unchecked(
    sock: Any,
    *,
    keyfile: Any = None,
    certfile: Any = None,
    ca_certs: Any = None,
    cert_reqs: Any = None,
    ciphers: str | None = None,
    ssl_version: Any = None,
    tls_maximum_version: Any = None,
    tls_minimum_version: Any = None,
    **options: Any,
) -> Any:
    """Wrap *sock* for TLS with py-amqp's options; ``server_hostname`` is sent, but not compared."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if ssl_version is None else ssl_version)
    # In this order, because comparing names needs verified certificates.
    context.check_hostname = False
    if cert_reqs is not None:
        context.verify_mode = cert_reqs
    if tls_maximum_version is not None:
        context.maximum_version = tls_maximum_version
    if tls_minimum_version is not None:
        context.minimum_version = tls_minimum_version
    if ciphers is not None:
        context.set_ciphers(ciphers)
    if certfile is not None:
        context.load_cert_chain(certfile, keyfile)
    if ca_certs is not None:
        context.load_verify_locations(ca_certs)
    elif context.verify_mode != ssl.CERT_NONE:
        context.load_default_certs()
    return context.wrap_socket(sock, **{"do_handshake_on_connect": False, **options})


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """*error*, and what it was raised from or while handling; each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """TLS's own error in *error*, which a driver may have wrapped."""
    return next((one for one in chain(error) if isinstance(one, ssl.SSLError)), None)


def speaks_none(error: BaseException) -> bool:
    """Whether *error* is that the peer does not speak TLS."""
    found = tls_error(error)
    return found is not None and any(part in (found.reason or "") for part in _NO_TLS)


def remedy(error: BaseException, host: str | None, options: Any, *, redis: bool) -> str:
    """What to do about *error*, where TLS has to do with it; else nothing.

    :param host: the broker's, as it stands in the URL.
    :param options: kombu's ``ssl``.
    """
    prefix = "ssl_" if redis else ""
    if isinstance(error, FileNotFoundError) and isinstance(options, Mapping):
        # Python's own words do not say which.
        missing = [one for name in _FILES if (one := options.get(name)) and not os.path.exists(one)]
        return "; ".join(f"{str(one)!r} is not there" for one in missing)
    found = tls_error(error)
    if isinstance(found, ssl.SSLCertVerificationError):
        code = getattr(found, "verify_code", 0)
        if code in _WRONG_NAME:
            name = "ssl_check_hostname=False" if redis else "server_hostname"
            return f"the certificate is not made out to {host!r}: use a name that is in it, or set SSL's {name!r}"
        if code in _WRONG_TIME:
            return f"the certificate of {host!r} has expired, or is not valid yet: renew it, or set the clock"
        if code in _UNKNOWN_SIGNER:
            return (
                f"nobody known has signed the certificate of {host!r}: name its authority in SSL's "
                f"'{prefix}ca_certs'"
            )
        return f"the certificate of {host!r} is not accepted: renew it"
    if speaks_none(error):
        return f"{host!r} does not speak TLS at this port"
    hung_up = any(isinstance(one, ConnectionError | ssl.SSLError) for one in chain(error))
    if options and hung_up and not isinstance(error, ConnectionRefusedError):
        # With TLS 1.3 it is often all that one sees.
        return (
            f"if {host!r} asks for a client's certificate, set SSL's '{prefix}certfile' and '{prefix}keyfile' "
            "to one that it accepts"
        )
    return ""
