"""Where the API server is and how to prove who we are: the pod's ServiceAccount, else a kubeconfig.

The one source of credentials for our own client and for kopf (`handlers.login`), so that the two never disagree.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import tempfile
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_READ = 60.0  # seconds between two looks at a token's file: it is replaced ten minutes before it ends


class ConfigError(Exception):
    """No usable way to reach a Kubernetes API server; the message says what was looked for."""


@dataclass(frozen=True)
class Connection:
    """How to reach one API server."""

    server: str
    namespace: str
    in_cluster: bool = False
    ca_file: str | None = None
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    insecure: bool = False

    def bearer(self) -> str | None:
        """The current token."""
        if self.token_file is not None:
            return _read_token(self.token_file, int(time.monotonic() // TOKEN_READ))
        return self.token

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS settings, or None for a plain-http server."""
        if not self.server.startswith("https"):
            return None
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate_file is not None:
            context.load_cert_chain(self.certificate_file, self.key_file)
        return context


@lru_cache(maxsize=8)  # of this time and the one before
def _read_token(file: str, time: int) -> str:
    return Path(file).read_text().strip()


async def load_connection(kubeconfig: str | None = None, context: str | None = None) -> Connection:
    """Find the API server.

    Parameters
    ----------
    kubeconfig
        Path of a kubeconfig; otherwise the pod's ServiceAccount, then ``$KUBECONFIG``, then ``~/.kube/config``.
    context
        Name of a context in it; its current one by default.

    Raises
    ------
    ConfigError
        If there is none, or it cannot be used.
    """
    if kubeconfig is None and context is None and (SERVICE_ACCOUNT / "token").exists():
        return _in_cluster()
    file, config = _read_kubeconfig(kubeconfig)
    return await _from_kubeconfig(file, config, context)


def _read_kubeconfig(kubeconfig: str | None) -> tuple[Path, dict[str, Any]]:
    """The first kubeconfig there is, and its content."""
    paths = [kubeconfig] if kubeconfig else os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)
    for path in paths:
        file = Path(path).expanduser()
        if file.exists():
            return file, yaml.safe_load(file.read_text()) or {}
    raise ConfigError(f"no ServiceAccount in {SERVICE_ACCOUNT} and no kubeconfig at {', '.join(paths)}")


def _in_cluster() -> Connection:
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return Connection(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        namespace=(SERVICE_ACCOUNT / "namespace").read_text().strip(),
        in_cluster=True,
        ca_file=str(SERVICE_ACCOUNT / "ca.crt"),
        token_file=str(SERVICE_ACCOUNT / "token"),
    )


async def _from_kubeconfig(file: Path, config: dict[str, Any], context_name: str | None) -> Connection:
    context_name = context_name or config.get("current-context")
    context = _named(config, "context", context_name, file)
    cluster = _named(config, "cluster", context.get("cluster"), file)
    user = _named(config, "user", context.get("user"), file)
    token = user.get("token")
    if "exec" in user:
        user = {**user, **await _run_plugin(user["exec"])}
        token = user.get("token")
    return Connection(
        server=cluster["server"].rstrip("/"),
        namespace=context.get("namespace", "default"),
        ca_file=_material(cluster, "certificate-authority", file),
        token=token,
        token_file=user.get("tokenFile"),
        certificate_file=_material(user, "client-certificate", file),
        key_file=_material(user, "client-key", file),
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
    )


def _named(config: dict[str, Any], kind: str, name: str | None, file: Path) -> dict[str, Any]:
    for entry in config.get(f"{kind}s") or []:
        if entry.get("name") == name:
            found: dict[str, Any] = entry[kind]
            return found
    raise ConfigError(f"{file} has no {kind} named {name!r}")


def _material(section: dict[str, Any], key: str, file: Path) -> str | None:
    """Path of a certificate or key that a kubeconfig names or carries inline (ssl reads files only)."""
    if data := section.get(f"{key}-data"):
        with tempfile.NamedTemporaryFile(prefix="daskfleet-", delete=False) as out:
            out.write(base64.b64decode(data))
        return out.name
    if path := section.get(key):
        return str(file.parent / Path(path).expanduser())
    return None


async def _run_plugin(plugin: dict[str, Any]) -> dict[str, Any]:
    """Credentials from a kubeconfig's exec plugin (EKS, GKE, AKS…)."""
    environment = dict(os.environ) | {item["name"]: item["value"] for item in plugin.get("env") or []}
    environment["KUBERNETES_EXEC_INFO"] = json.dumps(
        {"apiVersion": plugin.get("apiVersion"), "kind": "ExecCredential", "spec": {"interactive": False}}
    )
    process = await asyncio.create_subprocess_exec(
        plugin["command"], *(plugin.get("args") or []), env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise ConfigError(f"the kubeconfig's plugin {plugin['command']!r} gave no answer within 60 s") from None
    if process.returncode:
        raise ConfigError(f"the kubeconfig's plugin {plugin['command']!r} failed with code {process.returncode}")
    status = json.loads(output)["status"]
    return {
        "token": status.get("token"),
        "client-certificate-data": _encode(status.get("clientCertificateData")),
        "client-key-data": _encode(status.get("clientKeyData")),
    }


def _encode(pem: str | None) -> str | None:
    return base64.b64encode(pem.encode()).decode() if pem else None
