"""Certificates for tests of TLS, made by openssl."""

from __future__ import annotations

import ssl
from pathlib import Path

from harness import run, tool

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


def openssl(*words: str | Path) -> None:
    done = run(tool("openssl"), *words)
    assert done.returncode == 0, done.stderr


class Authority:
    """One that only its test knows."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.file, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        self._folder = folder
        openssl("req", "-x509", *NEW_KEY, "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.file)

    def issue(self, name: str) -> Path:
        """A certificate for 127.0.0.1 and its key, in one file."""
        request, certificate, key = (self._folder / f"{name}.{kind}" for kind in ("csr", "crt", "key"))
        openssl("req", *NEW_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        extension = self._folder / "extension"
        extension.write_text("subjectAltName=IP:127.0.0.1\n")
        openssl(
            *("x509", "-req", "-days", "2", "-in", request, "-out", certificate, "-extfile", extension),
            *("-CA", self.file, "-CAkey", self._key, "-CAcreateserial"),
        )
        both = self._folder / f"{name}.pem"
        both.write_text(key.read_text() + certificate.read_text())
        return both

    def client(self, certificate: Path | None = None) -> ssl.SSLContext:
        """Trusts this one, and shows the certificate."""
        context = ssl.create_default_context(cafile=self.file)
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context
