"""Certificates for the tests of TLS, made by openssl when they are first asked for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.wanted import without

__all__ = ["Certificates", "certificates"]

_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"


class Certificates:
    """An authority, and what it has signed; each name stands for ``NAME.pem`` and ``NAME.key``.

    ``server`` is this machine's, ``elsewhere`` another one's, ``expired`` was this machine's until yesterday,
    ``client`` is a client's, and ``stranger`` is signed by nobody but itself.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        authority = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign"
        self._sign("ca", "/CN=The tests' authority", authority, own=True)
        self._sign("server", "/CN=localhost", _NAMES)
        self._sign("elsewhere", "/CN=elsewhere.example", "subjectAltName=DNS:elsewhere.example")
        self._sign("expired", "/CN=localhost", _NAMES, days=-1)
        self._sign("client", "/CN=client", "extendedKeyUsage=clientAuth")
        self._sign("stranger", "/CN=localhost", _NAMES, own=True)

    def path(self, name: str) -> str:
        """Of the certificate."""
        return str(self._folder / f"{name}.pem")

    def key(self, name: str) -> str:
        """The path of its key."""
        return str(self._folder / f"{name}.key")

    def _sign(
        self, name: str, subject: str, extension: str, *, days: int = 2, own: bool = False
    ) -> None:
        request = str(self._folder / f"{name}.csr")
        self._openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", subject, "-keyout", self.key(name), "-out", request),
        )
        extensions = self._folder / f"{name}.ext"
        # From Python 3.13 on, certificates are held to their standard by default: RFC 5280.
        extension = f"{extension}\nsubjectKeyIdentifier=hash\n"
        signer = ("-signkey", self.key(name))
        if not own:
            extension += "authorityKeyIdentifier=keyid\n"
            signer = ("-CA", self.path("ca"), "-CAkey", self.key("ca"), "-CAcreateserial")
        extensions.write_text(extension)
        self._openssl(
            *("x509", "-req", "-in", request, "-days", str(days), "-extfile", str(extensions)),
            *("-out", self.path(name), *signer),
        )

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The certificates of this session."""
    if shutil.which("openssl") is None:
        without("openssl", "certificates are made with it")
    return Certificates(tmp_path_factory.mktemp("certificates"))
