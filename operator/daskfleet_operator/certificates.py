"""Certificates for the clusters that want them, and the Secrets they are kept in.

`cryptography` is imported when the first such cluster comes: it takes eleven megabytes, which an operator without one
does not spend.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from daskfleet_operator.kube.client import Api, ApiError
from daskfleet_operator.kube.kinds import SECRET
from daskfleet_operator.kube.objects import controller
from daskfleet_operator.plan import model
from daskfleet_operator.store import Store

logger = logging.getLogger(__name__)

VALID = timedelta(days=3650)


class Certificates:
    """Sees to the Secrets with certificates.

    Parameters
    ----------
    wake_in
        The work queue's.
    """

    def __init__(
        self, api: Api, store: Store, wake_in: Callable[[model.Key, float], None], now: Callable[[], float]
    ) -> None:
        self._api = api
        self._store = store
        self._wake_in = wake_in
        self._now = now

    async def ensure(self, key: model.Key, action: model.EnsureTls) -> bool:
        """Create the Secret; one that exists stays, unless it is an earlier cluster's, which is about to go."""
        try:
            before = await self._authority(key, action.previous)
            made = make(key.name, [f"{key.name}-scheduler", f"{key.name}-scheduler.{key.namespace}.svc"], before)
            encoded = {name: base64.b64encode(content).decode() for name, content in made.items()}
            await self._api.create(SECRET, key.namespace, {**action.body, "data": encoded})
        except ApiError as error:
            if error.transient:
                raise
            if error.reason != "AlreadyExists":
                cluster = self._store.observed(key).cluster
                generation = cluster["metadata"].get("generation", 0) if cluster else 0
                refusal = model.Refusal(error.reason, error.message, self._now(), 1, generation)
                self._store.refused(key, f"Secret/{action.name}", refusal)
                return False
            owner = controller(await self._api.get(SECRET, key.namespace, action.name))
            if owner is not None and owner != controller(action.body):
                self._wake_in(key, 0.2)
                return False
        self._store.accepted(key, f"Secret/{action.name}")
        self._store.remember(key, lambda memory: replace(memory, tls_ensured=action.name))
        return True

    async def _authority(self, key: model.Key, secret: str) -> dict[str, bytes]:
        """Certificate and key of the authority in another Secret; nothing where that is gone."""
        if not secret:
            return {}
        try:
            found = await self._api.get(SECRET, key.namespace, secret)
        except ApiError as error:
            if error.status != 404:
                raise
            return {}
        data = {name: base64.b64decode(content) for name, content in (found.get("data") or {}).items()}
        return {name: data[name] for name in ("ca.crt", "ca.key") if name in data}


def make(cluster: str, hosts: list[str], before: dict[str, bytes]) -> dict[str, bytes]:
    """A new authority and a certificate by it, as PEM.

    Parameters
    ----------
    cluster
        The cluster's name, for those who look at a certificate.
    hosts
        Names of the scheduler.
    before
        ``ca.crt`` and ``ca.key`` of the authority that is replaced: it signs the new one, and is trusted further on.

    Returns
    -------
    dict
        ``ca.crt``: those to trust. ``tls.crt``: the certificate with what leads to the authority before, and
        ``tls.key``. ``ca.key``: the authority's, which no pod gets.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem = serialization.Encoding.PEM
    authority_key, own_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = _name(f"daskfleet {cluster} {datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}")
    authority = _sign(authority_name, authority_key.public_key(), authority_name, authority_key, True, [])
    own = _sign(_name(cluster), own_key.public_key(), authority_name, authority_key, False, hosts)
    trusted, chain = authority.public_bytes(pem), own.public_bytes(pem)
    if {"ca.crt", "ca.key"} <= before.keys():
        old = x509.load_pem_x509_certificates(before["ca.crt"])[0]
        old_key = serialization.load_pem_private_key(before["ca.key"], None)
        chain += _sign(authority_name, authority_key.public_key(), old.subject, old_key, True, []).public_bytes(pem)
        trusted += old.public_bytes(pem)

    def private(key: Any) -> bytes:
        form, sealed = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return bytes(key.private_bytes(pem, form, sealed))

    return {"ca.crt": trusted, "tls.crt": chain, "tls.key": private(own_key), "ca.key": private(authority_key)}


def _name(text: str) -> Any:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text[:64])])


def _sign(subject: Any, public_key: Any, issuer: Any, issuer_key: Any, authority: bool, hosts: list[str]) -> Any:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(now + VALID)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if hosts:
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
    return made.sign(issuer_key, hashes.SHA256())
