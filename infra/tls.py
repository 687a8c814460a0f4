"""The files with which this process proves who it is to a Dask cluster, looked at before anything is sent."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from infra.errors import InputError


@dataclass(frozen=True)
class TlsFiles:
    """An authority, and a certificate of it with its key; all PEM."""

    ca: Path
    cert: Path
    key: Path

    def check(self) -> None:
        """Raise an InputError that names the file that is missing, no PEM, or does not fit the others."""
        for name in ("ca", "cert", "key"):
            _require_readable(name, getattr(self, name))
        _rehearse(self._authority(), self._identity())

    def _authority(self) -> ssl.SSLContext:
        """Return what asks the other side for a certificate of the authority."""
        asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        asking.verify_mode = ssl.CERT_REQUIRED
        try:
            asking.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise InputError(
                f"cluster.tls_ca must hold an authority's certificates as PEM, but got tls_ca={self.ca} ({error}). "
                "Name the cluster's own ca file."
            ) from error
        self._load(asking)
        return asking

    def _identity(self) -> ssl.SSLContext:
        """Return what shows the certificate."""
        showing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        showing.check_hostname = False  # Dask does not look at names either: whoever has a certificate belongs
        showing.verify_mode = ssl.CERT_NONE
        self._load(showing)
        return showing

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self.cert, self.key, password=lambda: "")
        except ssl.SSLError as error:
            raise InputError(
                "cluster.tls_key must be the key, without a password, of the certificate in cluster.tls_cert, but got "
                f"tls_key={self.key} for tls_cert={self.cert} ({error}). Name the two that were made together."
            ) from error


def _require_readable(name: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cluster.tls_{name} must be a file that can be read, but got tls_{name}={path} ({error.strerror}). "
            "Correct it; relative paths start at the folder of the configuration."
        ) from error


def _rehearse(asking: ssl.SSLContext, showing: ssl.SSLContext) -> None:
    """Let the two sides meet in memory: the authority must have signed the certificate, which must not have expired."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = asking.wrap_bio(to_server, to_client, server_side=True)
    client = showing.wrap_bio(to_client, to_server)
    waiting = [client, server, client, server]
    try:
        for side in waiting:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    except ssl.SSLCertVerificationError as error:
        raise InputError(
            "cluster.tls_cert must be signed by the authority in cluster.tls_ca and be valid now, but got "
            f"error={error.verify_message!r}. Name files that were made together, or renew the certificate."
        ) from error
