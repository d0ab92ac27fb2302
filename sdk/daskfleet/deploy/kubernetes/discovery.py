"""The clusters in Kubernetes, as `daskfleet.deploy.discovery` wants them: changed over the API server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from daskfleet.deploy.cluster import Logs
from daskfleet.deploy.discovery import FoundCluster
from daskfleet.deploy.kubernetes import fixed, lifecycle
from daskfleet.deploy.kubernetes.api import Api
from daskfleet.deploy.kubernetes.credentials import configured_context, is_configured
from daskfleet.deploy.kubernetes.errors import KubernetesError, OperatorMissing
from daskfleet.deploy.kubernetes.kubecluster import KubeCluster
from daskfleet.deploy.kubernetes.lifecycle import Summary
from daskfleet.deploy.kubernetes.logs import follow_logs, read_logs


@dataclass
class FoundKubeCluster(FoundCluster):
    """A cluster in Kubernetes. One that an operator made is changed without a connection to its scheduler."""

    operated: bool = True

    @classmethod
    def of(cls, summary: Summary) -> FoundKubeCluster:
        """From what the API server says."""
        return cls(
            name=summary.full_name,
            manager=KubeCluster,
            status=summary.status,
            workers=summary.workers,
            ready=summary.ready,
            created=summary.created,
            address=f"tcp://{summary.name}-scheduler.{summary.namespace}:8786",
            made_by="KubeCluster" if summary.made_by == "operator" else "Helm",
            operated=summary.made_by == "operator",
        )

    @contextlib.asynccontextmanager
    async def _api(self) -> AsyncIterator[tuple[Api, str, str]]:
        namespace, _, name = self.name.partition("/")
        api = await Api.connect(configured_context())
        try:
            yield api, namespace, name
        finally:
            await api.close()

    async def _scale(self, n: int, worker_group: str) -> None:
        if not self.operated:  # the scheduler is to choose who goes
            return await super()._scale(n, worker_group)
        async with self._api() as (api, namespace, name):
            await lifecycle.scale_group(api, namespace, name, n, worker_group)

    async def _adapt(self, minimum: int, maximum: float, enabled: bool) -> Any:
        if not self.operated:
            if enabled:
                return await super()._adapt(minimum, maximum, enabled)
            async with self._opened() as cluster:
                await cluster.adapt(enabled=False)
            return None
        async with self._api() as (api, namespace, name):
            if enabled:
                await lifecycle.set_autoscaler(api, namespace, name, minimum, maximum)
            else:
                await lifecycle.delete_autoscaler(api, namespace, name)
        return None

    async def _delete(self) -> None:
        async with self._api() as (api, namespace, name):
            if not self.operated:
                raise KubernetesError(f"{self.name} belongs to Helm: helm uninstall {name} --namespace {namespace}")
            await lifecycle.delete_cluster(api, namespace, name)

    async def _layout(self, api: Api, namespace: str, name: str) -> fixed.Layout:
        release = None if self.operated else await fixed.find_fixed(api, namespace, name)
        return release.layout if release else fixed.OURS

    async def _logs(self, scheduler: bool, workers: bool, lines: int | None) -> Logs:
        async with self._api() as (api, namespace, name):
            layout = await self._layout(api, namespace, name)
            return await read_logs(
                api, namespace, name, scheduler=scheduler, workers=workers, lines=lines, layout=layout
            )

    async def _follow(self, scheduler: bool, workers: bool, lines: int | None) -> AsyncGenerator[tuple[str, str]]:
        async with self._api() as (api, namespace, name):
            layout = await self._layout(api, namespace, name)
            said = follow_logs(api, namespace, name, scheduler=scheduler, workers=workers, lines=lines, layout=layout)
            async with contextlib.aclosing(said):
                async for line in said:
                    yield line

    @contextlib.asynccontextmanager
    async def _dashboard(self) -> AsyncIterator[tuple[str, bool]]:
        async with self._opened(quiet=True) as cluster:
            link = cluster.dashboard_link
            yield link, urlsplit(link).hostname != "127.0.0.1"  # which is a port-forward of ours


async def discover(namespace: str | None = None) -> AsyncIterator[FoundCluster]:
    """Entry point ``dask_cluster_discovery``: the clusters that the kubeconfig's context, or this pod's account, sees.

    Parameters
    ----------
    namespace
        All that we may look into by default.

    Yields
    ------
    FoundCluster
        Nothing where there is no Kubernetes, or no operator and no release.

    Raises
    ------
    KubernetesError
        If the API server does not answer or refuses.
    """
    if not is_configured():
        return
    api = await Api.connect(configured_context())
    try:
        async with asyncio.timeout(10):
            found = await lifecycle.list_clusters(api, namespace)
    except OperatorMissing:
        return
    except TimeoutError:
        raise TimeoutError(f"the Kubernetes API server at {api.host} does not answer") from None
    finally:
        await api.close()
    for summary in found:
        yield FoundKubeCluster.of(summary)
