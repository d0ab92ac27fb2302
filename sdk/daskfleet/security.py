"""What a connection must prove, and how it is encrypted: `Security`."""

from __future__ import annotations

import os
import secrets
import ssl
from pathlib import Path
from typing import Any

from daskfleet import config

ROLES = ("scheduler", "worker", "client")
TOKEN_VARIABLE = "DASKFLEET_TOKEN"


class Security:
    """The token and the TLS certificates of one cluster.

    Every argument that is not given comes from dask's configuration (``distributed.comm.tls.*``,
    ``distributed.comm.require-encryption``); the token from the environment variable ``DASKFLEET_TOKEN``. The names are
    those of ``distributed.Security``, plus `token`; all are given by keyword, `require_encryption` too.

    Parameters
    ----------
    token
        The secret that every connection proves (`daskfleet.protocol.handshake`); it is never sent, logged or shown.
    tls_ca_file, tls_scheduler_cert, tls_scheduler_key, tls_worker_cert, tls_worker_key, tls_client_cert, tls_client_key
        PEM text, or the path of a PEM file. A certificate file that holds its key needs no separate key.
    tls_ciphers
        An OpenSSL cipher list for TLS 1.2.
    tls_min_version, tls_max_version
        ``1.2`` or ``1.3``; the minimum is 1.2 unless said otherwise.
    require_encryption
        Refuse ``tcp://`` addresses.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        require_encryption: bool | None = None,
        tls_ca_file: str | None = None,
        tls_scheduler_cert: str | None = None,
        tls_scheduler_key: str | None = None,
        tls_worker_cert: str | None = None,
        tls_worker_key: str | None = None,
        tls_client_cert: str | None = None,
        tls_client_key: str | None = None,
        tls_ciphers: str | None = None,
        tls_min_version: float | str | None = None,
        tls_max_version: float | str | None = None,
        extra_conn_args: dict[str, Any] | None = None,
    ) -> None:
        self.token = token if token is not None else os.environ.get(TOKEN_VARIABLE) or None
        self.require_encryption = bool(_configured("require-encryption", require_encryption))
        self.tls_ca_file = _configured("tls.ca-file", tls_ca_file)
        self.tls_scheduler_cert = _configured("tls.scheduler.cert", tls_scheduler_cert)
        self.tls_scheduler_key = _configured("tls.scheduler.key", tls_scheduler_key)
        self.tls_worker_cert = _configured("tls.worker.cert", tls_worker_cert)
        self.tls_worker_key = _configured("tls.worker.key", tls_worker_key)
        self.tls_client_cert = _configured("tls.client.cert", tls_client_cert)
        self.tls_client_key = _configured("tls.client.key", tls_client_key)
        self.tls_ciphers = _configured("tls.ciphers", tls_ciphers)
        self.tls_min_version = _configured("tls.min-version", tls_min_version) or 1.2
        self.tls_max_version = _configured("tls.max-version", tls_max_version)
        self.extra_conn_args = extra_conn_args or {}

    def __repr__(self) -> str:
        token = "set" if self.token else "none"
        return f"<Security token={token} tls={bool(self.tls_ca_file)} require_encryption={self.require_encryption}>"

    @classmethod
    def with_token(cls) -> Security:
        """A `Security` with a fresh random token: what a cluster manager gives a cluster of its own."""
        return cls(token=new_token())

    @classmethod
    def of(cls, given: Security | dict[str, Any] | bool | None) -> Security | None:
        """What a constructor's ``security=`` may be: one, its parameters, or True for `temporary` with a token."""
        if given is True:
            return cls.temporary(token=new_token())
        if isinstance(given, dict):
            return cls(**given)
        return given or None

    @classmethod
    def temporary(cls, **options: Any) -> Security:
        """A `Security` with a certificate of its own, in memory only, that all roles show: TLS for one cluster.

        Valid for a year. `options` are other parameters of `Security`.

        Raises
        ------
        ImportError
            The package ``cryptography`` is missing.
        """
        certificate, key = _self_signed()
        roles = {f"tls_{role}_{part}": text for role in ROLES for part, text in (("cert", certificate), ("key", key))}
        return cls(**{"require_encryption": True, "tls_ca_file": certificate, **roles, **options})

    @property
    def encrypted(self) -> bool:
        """Whether certificates are at hand, so that ``tls://`` addresses can be used."""
        return self.tls_ca_file is not None

    def get_connection_args(self, role: str) -> dict[str, Any]:
        """Keyword arguments for a connection made by `role` (``scheduler``, ``worker`` or ``client``)."""
        return {
            "ssl_context": self._context(role, ssl.Purpose.SERVER_AUTH),
            "token": self.token,
            "require_encryption": self.require_encryption,
            **self.extra_conn_args,
        }

    def get_listen_args(self, role: str) -> dict[str, Any]:
        """Keyword arguments for a listener of `role`."""
        return {
            "ssl_context": self._context(role, ssl.Purpose.CLIENT_AUTH),
            "token": self.token,
            "require_encryption": self.require_encryption,
        }

    def _context(self, role: str, purpose: ssl.Purpose) -> ssl.SSLContext | None:
        if role not in ROLES:
            raise ValueError(f"role {role!r}: expected one of {', '.join(ROLES)}")
        cert, key = getattr(self, f"tls_{role}_cert"), getattr(self, f"tls_{role}_key")
        if not self.tls_ca_file:
            return None
        if not cert:
            raise ValueError(f"tls_ca_file is set but tls_{role}_cert is not: the {role} has no certificate to show")
        server_side = purpose is ssl.Purpose.CLIENT_AUTH
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
        context.verify_mode = ssl.CERT_REQUIRED
        context.check_hostname = False  # nodes come and go under changing addresses; the private CA vouches for them
        context.minimum_version = _tls_version(self.tls_min_version)
        if self.tls_max_version:
            context.maximum_version = _tls_version(self.tls_max_version)
        if self.tls_ciphers:
            context.set_ciphers(self.tls_ciphers)
        if "-----BEGIN" in self.tls_ca_file:
            context.load_verify_locations(cadata=self.tls_ca_file)
        else:
            context.load_verify_locations(cafile=self.tls_ca_file)
        _load_chain(context, cert, key)
        return context


def new_token() -> str:
    """64 hexadecimal characters from the system's random source."""
    return secrets.token_hex(32)


def _self_signed() -> tuple[str, str]:
    """A certificate and its key, as PEM text."""
    from datetime import UTC, datetime, timedelta

    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise ImportError(
            "Security.temporary() makes certificates by a package that is missing: pip install cryptography"
        ) from None
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "daskfleet")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(now + timedelta(days=365))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem).decode(), private.decode()


def _configured(key: str, given: Any) -> Any:
    if given is not None:
        return given
    return config.get(f"distributed.comm.{key}")


def _tls_version(version: float | str) -> ssl.TLSVersion:
    versions = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
    try:
        return versions[str(version)]
    except KeyError:
        raise ValueError(f"TLS version {version!r}: expected 1.2 or 1.3") from None


def _load_chain(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    """Load a certificate given as text or as a path; OpenSSL takes files only, so text passes through a 0600 file."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="daskfleet-tls-") as folder:

        def as_path(name: str, value: str) -> str:
            if "-----BEGIN" not in value:
                return value
            path = Path(folder, name)
            path.touch(mode=0o600)
            path.write_text(value)
            return str(path)

        context.load_cert_chain(as_path("cert.pem", cert), as_path("key.pem", key) if key else None)
