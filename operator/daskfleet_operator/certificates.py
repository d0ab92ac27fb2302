"""Certificates for the clusters that want them, and the Secrets they are kept in.

`cryptography` is imported when the first such cluster comes: it takes eleven megabytes, which an operator without one
does not spend.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from daskfleet_operator.kube.client import Api, ApiError
from daskfleet_operator.kube.kinds import SECRET
from daskfleet_operator.kube.objects import SOON, controller
from daskfleet_operator.plan import model
from daskfleet_operator.store import Store

logger = logging.getLogger(__name__)

VALID = timedelta(days=3650)
LOST = (
    "the Secret {secret!r} was deleted while no operator knew what is in it: the pods that run go on, but others "
    "cannot join them. New certificates for all, for which the cluster loses what its workers hold: "
    "kubectl annotate daskcluster {cluster} kubernetes.dask.org/rotate-tls=again --overwrite"
)


@dataclass(frozen=True, slots=True)
class Kept:
    """What is in a Secret of a cluster's: its name, its owner's uid, and its data, base64 as the API server has it."""

    name: str
    owner: str | None
    data: dict[str, str]


class Certificates:
    """Sees to the Secrets with certificates. What is in each is kept: one that is deleted comes back with the same, or
    the pods that run would not understand those that come.

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
        self._kept: dict[model.Key, Kept] = {}

    def forget(self, key: model.Key) -> None:
        """The cluster is gone."""
        self._kept.pop(key, None)

    async def ensure(self, key: model.Key, action: model.EnsureTls) -> bool:
        """Create the Secret; one that exists stays, unless it is an earlier cluster's, which is about to go."""
        owner = controller(action.body)
        try:
            data = await self._content(key, action, owner)
            if data is None:
                return self._refused(key, action.name, "Lost", LOST.format(secret=action.name, cluster=key.name))
            await self._api.create(SECRET, key.namespace, {**action.body, "data": data})
        except ApiError as error:
            if error.transient:
                raise
            if error.reason != "AlreadyExists":
                return self._refused(key, action.name, error.reason, error.message)
            found = await self._api.get(SECRET, key.namespace, action.name)
            if controller(found) not in (None, owner):
                self._wake_in(key, SOON)
                return False
            data = found.get("data") or {}
        self._kept[key] = Kept(action.name, owner, data)
        self._store.accepted(key, f"Secret/{action.name}")
        self._store.remember(key, lambda memory: replace(memory, tls_ensured=(action.name, self._now())))
        return True

    async def _content(self, key: model.Key, action: model.EnsureTls, owner: str | None) -> dict[str, str] | None:
        """What is to be in the Secret; None if a scheduler uses it, and what was in it is not to be had."""
        known = self._kept.get(key)
        if known is not None and known.owner != owner:  # of an earlier cluster by this name
            known = None
        if known is not None and known.name == action.name:
            return known.data
        if action.used:
            found = await self._api.find(SECRET, key.namespace, action.name)
            return None if found is None else found.get("data") or {}
        before = known.data if known is not None and known.name == action.previous else None
        if before is None and action.previous:
            found = await self._api.find(SECRET, key.namespace, action.previous)
            before = (found or {}).get("data")
        trusted = {name: base64.b64decode((before or {}).get(name, "")) for name in ("ca.crt", "ca.key")}
        hosts = [f"{key.name}-scheduler", f"{key.name}-scheduler.{key.namespace}.svc"]
        made = make(key.name, hosts, {name: content for name, content in trusted.items() if content})
        return {name: base64.b64encode(content).decode() for name, content in made.items()}

    def _refused(self, key: model.Key, name: str, reason: str, message: str) -> bool:
        """Remember it, for the cluster's conditions. Returns False: nothing was changed."""
        cluster = self._store.observed(key).cluster
        generation = cluster["metadata"].get("generation", 0) if cluster else 0
        self._store.refused(key, f"Secret/{name}", model.Refusal(reason, message, self._now(), 1, generation))
        return False


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
