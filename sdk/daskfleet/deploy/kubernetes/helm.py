"""`HelmCluster`: a Helm release by the name that dask-kubernetes once had for it."""

from __future__ import annotations

from typing import Any, Self

from daskfleet.deploy.kubernetes.errors import ClusterNotFound
from daskfleet.deploy.kubernetes.kubecluster import KubeCluster
from daskfleet.deploy.kubernetes.options import CreateMode


class HelmCluster(KubeCluster):
    """A cluster that ``helm install`` has made, with daskfleet's chart or dask's own ``dask`` chart.

    `KubeCluster` finds these as well; this one finds nothing else. Closing it leaves the release as it is.

    Parameters
    ----------
    release_name
        Of the Helm release.
    namespace
        Of the release; by default that of the kubeconfig's context, or of the pod that this runs in.
    options
        As for `KubeCluster`: ``port_forward_cluster_ip, context, resource_timeout, loop, asynchronous, quiet`` …

    Raises
    ------
    ClusterNotFound
        There is no such release; with the names of the clusters that there are.
    """

    def __init__(self, release_name: str, namespace: str | None = None, **options: Any) -> None:
        fixed = {"create_mode": CreateMode.CONNECT_ONLY, "shutdown_on_close": False}
        super().__init__(name=release_name, namespace=namespace, **{**options, **fixed})

    @classmethod
    def from_name(cls, name: str, **options: Any) -> Self:
        """As the constructor; `name` may be ``namespace/release``."""
        return cls(name, **options)

    async def _start(self) -> None:
        await super()._start()
        if self._fixed is None:
            raise ClusterNotFound(f"cluster {self.name!r} was not made by Helm: KubeCluster.from_name connects to it")
