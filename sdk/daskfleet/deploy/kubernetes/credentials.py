"""Who we are to which API server: kubeconfigs, contexts, a pod's own account, what renews tokens, and proxies.

The official client reads most of it. What it leaves out, and kubectl does, is here: plugins are asked again before
their token ends, a ``tokenFile`` is read for every request, and the proxies of the environment are used.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from daskfleet.deploy.kubernetes.errors import KubeConfigError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


async def load(configuration: Any, context: str | None) -> tuple[str, bool]:
    """Fill the official client's `configuration` from the kubeconfig, else from the pod's service account.

    Parameters
    ----------
    context
        Of the kubeconfig; its own choice by default.

    Returns
    -------
    tuple
        The namespace that it names, and whether it is the pod's account.

    Raises
    ------
    KubeConfigError
        If there is none, or it cannot be used.
    """
    namespace, in_cluster = await _load(configuration, context)
    configuration.proxy = configuration.proxy or proxy_for(configuration.host)
    return namespace, in_cluster


async def _load(configuration: Any, context: str | None) -> tuple[str, bool]:
    from kubernetes.aio import config as kubernetes_config

    config: Any = kubernetes_config  # untyped
    files, found = _kubeconfig_files()
    try:
        if found:
            loader = await config.load_kube_config(
                config_file=files, context=context, client_configuration=configuration
            )
            if loader.provider is None and loader._user and "exec" in loader._user:
                _renew_by_plugin(configuration, loader)
            elif loader._user and "tokenFile" in loader._user and "token" not in loader._user:
                base = Path(loader._user.path or files).parent
                await _renew_by_file(configuration, base / Path(loader._user["tokenFile"]).expanduser())
            return loader.current_context["context"].get("namespace") or "default", False
        if "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").exists():
            config.load_incluster_config(client_configuration=configuration)
            return (SERVICE_ACCOUNT / "namespace").read_text().strip(), True
    except (config.ConfigException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if context and context not in (names := _contexts(config, files)):
            raise KubeConfigError(
                f"the kubeconfig {files} has no context {context!r}; it has: {', '.join(names) or 'none'}"
            ) from None
        raise KubeConfigError(f"the kubeconfig {files} cannot be used: {error}") from None
    raise KubeConfigError(
        f"no Kubernetes configuration: there is no kubeconfig at {files}, and this process is not in a pod; "
        "set KUBECONFIG to one that works with kubectl"
    )


def _renew_by_plugin(configuration: Any, loader: Any) -> None:
    async def renew(settings: Any) -> None:
        await loader.load_from_exec_plugin()  # answers at once while the credentials it holds are good
        settings.api_key["BearerToken"] = loader.token

    if "token" in vars(loader):
        configuration.refresh_api_key_hook = renew


async def _renew_by_file(configuration: Any, path: Path) -> None:
    """Read the token from a file that somebody else keeps fresh; again for each request, as it is small and local."""

    async def read(settings: Any) -> None:
        settings.api_key["BearerToken"] = f"Bearer {path.read_text().strip()}"

    await read(configuration)
    configuration.refresh_api_key_hook = read


def proxy_for(url: str) -> str | None:
    """The proxy that the environment has for `url` (``HTTPS_PROXY``, ``NO_PROXY``), as kubectl sees it.

    Unlike Python's own reading, ``NO_PROXY`` may name networks (``10.0.0.0/8``), as it mostly does beside Kubernetes.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxy = getproxies().get(parts.scheme)
    if not proxy or host == "localhost" or proxy_bypass(host):
        return None
    with contextlib.suppress(ValueError):  # the host is a name
        address = ipaddress.ip_address(host)
        if address.is_loopback:
            return None
        for entry in getproxies().get("no", "").split(","):
            with contextlib.suppress(ValueError):  # the entry is one
                if address in ipaddress.ip_network(entry.strip(), strict=False):
                    return None
    return proxy


def _kubeconfig_files() -> tuple[str, bool]:
    """The kubeconfig files as KUBECONFIG or the default name them, and whether there is one."""
    files = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    return files, any(path and Path(path).expanduser().exists() for path in files.split(os.pathsep))


def is_configured() -> bool:
    """Whether there is a kubeconfig, or this process runs in a pod that has an account."""
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").exists()
    return in_pod or _kubeconfig_files()[1]


def configured_context() -> str | None:
    """The context that dask's configuration names, ``kubernetes.context``; None for the kubeconfig's own choice."""
    import dask

    context = dask.config.get("kubernetes.context", None)
    return None if context is None else str(context)


def _contexts(config: Any, files: str) -> list[str]:
    try:
        return sorted(str(context["name"]) for context in config.list_kube_config_contexts(files)[0])
    except (config.ConfigException, OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
