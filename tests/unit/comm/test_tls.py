"""TLS on one side only, certificates of somebody else, encryption that is required: told, at once."""

from __future__ import annotations

import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from daskfleet import Client, Scheduler, Security, Worker
from daskfleet.comm import CommClosedError

QUIET = {"port": 0, "host": "127.0.0.1", "dashboard_address": None}


def certified(path: Path) -> Security:
    """With a certificate that vouches for itself."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "1"]
    path.write_bytes(subprocess.run([*command, "-keyout", "-", "-out", "-"], capture_output=True, check=True).stdout)
    certificates = {f"tls_{role}_cert": str(path) for role in ("scheduler", "worker", "client")}
    return Security(tls_ca_file=str(path), **certificates)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Security:
    return certified(tmp_path_factory.mktemp("tls") / "ours.pem")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Security:
    return certified(tmp_path_factory.mktemp("tls") / "theirs.pem")


@pytest.fixture
async def encrypted(ours: Security) -> AsyncIterator[Scheduler]:
    async with Scheduler(**QUIET, protocol="tls", security=ours) as scheduler:
        yield scheduler


@pytest.fixture
async def plain() -> AsyncIterator[Scheduler]:
    async with Scheduler(**QUIET) as scheduler:
        yield scheduler


def connecting(address: str, security: Security | None = None) -> Client:
    return Client(address, security=security, asynchronous=True, timeout=60, set_as_default=False)


async def test_tls_on_one_side_only(encrypted: Scheduler, plain: Scheduler, ours: Security) -> None:
    with pytest.raises(CommClosedError, match=r"cannot connect to tcp://.*if it speaks TLS, its address is tls://"):
        await connecting(encrypted.address.replace("tls", "tcp"))
    with pytest.raises(ConnectionError, match=r"cannot connect to tls://.*does it speak TLS\? if not, .* is tcp://"):
        await connecting(plain.address.replace("tcp", "tls"), ours)
    with pytest.raises(ValueError, match=r"needs TLS certificates: pass security="):
        await connecting(encrypted.address)
    with pytest.raises(TimeoutError, match=r"no scheduler at tcp://.* within 3 s .*if it speaks TLS"):
        await Worker(encrypted.address.replace("tls", "tcp"), death_timeout=3)
    async with connecting(encrypted.address, ours), connecting(plain.address):
        pass  # both are there still, for those who are right


async def test_certificates_of_somebody_else(encrypted: Scheduler, theirs: Security) -> None:
    why = r"cannot connect to tls://.*: self-signed certificate: the tls_ca_file here does not vouch"
    with pytest.raises(OSError, match=why):
        await connecting(encrypted.address, theirs)
    begun = time.monotonic()
    with pytest.raises(OSError, match=why):
        await Worker(encrypted.address, security=theirs, death_timeout=60)
    assert time.monotonic() - begun < 30, "waiting would not mend it"


async def test_encryption_that_is_required(plain: Scheduler, ours: Security) -> None:
    required = Security(require_encryption=True)
    with pytest.raises(ValueError, match=r"tcp://.*: encryption is required .*, so the address must be tls://"):
        await connecting(plain.address, required)
    with pytest.raises(ValueError, match="encryption is required"):
        await Scheduler(**QUIET, security=required)
    with pytest.raises(ValueError, match="encryption is required"):
        await Worker(plain.address, security=required)


async def test_temporary_certificates_are_enough_for_a_cluster(theirs: Security) -> None:
    security = Security.temporary(token="t")
    assert security.encrypted and security.require_encryption
    async with (
        Scheduler(**QUIET, protocol="tls", security=security) as scheduler,
        Worker(scheduler.address, nthreads=1, security=security),
        Client(scheduler.address, security=security, asynchronous=True, set_as_default=False) as client,
    ):
        assert await client.submit(sum, [1, 2]) == 3
        with pytest.raises(ssl.SSLCertVerificationError):
            await Client(scheduler.address, security=theirs, asynchronous=True, set_as_default=False)
