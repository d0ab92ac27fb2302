"""One cluster as the API server shows it: `View`, kept up to date by selective watches.

All waiting in the SDK is waiting for this view to change, so nothing is ever polled, and what an error says is what was
seen last. The watches select the one DaskCluster by name, and pods and worker groups by the cluster's label; of a
cluster that no operator made, there is no DaskCluster, and its groups are Deployments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from daskfleet.deploy.kubernetes import diagnosis
from daskfleet.deploy.kubernetes.api import Api, resource_path
from daskfleet.deploy.kubernetes.errors import ApiError
from daskfleet.deploy.kubernetes.fixed import OURS, Fixed

T = TypeVar("T")
Object = dict[str, Any]


class View:
    """The DaskCluster `name`, its worker groups and its pods.

    Parameters
    ----------
    fixed
        What the cluster is made of, if no operator made it.

    Attributes
    ----------
    cluster
        The DaskCluster, None when there is none.
    groups, pods
        DaskWorkerGroups (or Deployments) and pods by name.
    synced
        Whether all have been listed.
    """

    def __init__(self, api: Api, namespace: str, name: str, fixed: Fixed | None = None) -> None:
        self._api = api
        self.namespace = namespace
        self.name = name
        self.cluster: Object | None = None
        self.groups: dict[str, Object] = {}
        self.pods: dict[str, Object] = {}
        self._layout = fixed.layout if fixed else OURS
        mine = {"labels": self._layout.selector(name)}
        workers = {"labels": f"{mine['labels']},{self._layout.component_label}=worker"}
        self._watched = (
            {"Deployment": workers, "pods": mine}
            if fixed
            else {"DaskCluster": {"fields": f"metadata.name={name}"}, "DaskWorkerGroup": mine, "pods": mine}
        )
        self._unsynced = set(self._watched)
        self._error: ApiError | None = None
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Open the watches; `close` ends them."""
        for kind, selector in self._watched.items():
            self._tasks.append(asyncio.get_running_loop().create_task(self._follow(kind, selector)))

    async def close(self) -> None:
        """End the watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def synced(self) -> bool:
        return not self._unsynced

    async def _follow(self, kind: str, selector: dict[str, str]) -> None:
        try:
            async for event in self._api.watch(resource_path(kind, self.namespace), **selector):
                if event.type == "SYNCED":
                    self._unsynced.discard(kind)
                else:
                    self._apply(kind, event.object, gone=event.type == "DELETED")
                self._wake()
        except ApiError as error:
            self._error = error
            self._wake()

    def _apply(self, kind: str, thing: Object, gone: bool) -> None:
        if kind == "DaskCluster":
            self.cluster = None if gone else thing
            return
        table = self.pods if kind == "pods" else self.groups
        table[thing["metadata"]["name"]] = thing
        if gone:
            del table[thing["metadata"]["name"]]

    def note(self, kind: str, thing: Object) -> None:
        """Take over what the API server answered to a change of ours, ahead of the watch."""
        self._apply(kind, thing, gone=False)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self) -> None:
        """Wait for the next change.

        Raises
        ------
        ApiError
            If the API server refuses a watch.
        """
        if self._error is None:
            await self._changed.wait()
        if self._error is not None:
            raise self._error

    async def wait_until(self, look: Callable[[], T | None]) -> T:
        """Wait until `look` returns something true, looking after each change; return that."""
        while not (found := look()):
            await self.change()
        return found

    # --------------------------------------------------------------------------------------------------- what is seen

    def scheduler(self) -> Object | None:
        """The scheduler's pod: the newest that is not terminating."""
        pods = [pod for pod in self._component("scheduler") if self._ours(pod)]
        return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)

    def running_scheduler(self) -> Object | None:
        """The scheduler's pod once its containers run."""
        pod = self.scheduler()
        return pod if pod is not None and diagnosis.running(pod) else None

    def placed_scheduler(self) -> Object | None:
        """The scheduler's pod once it has a node, whose kubelet can be asked to forward ports into it.

        The kubelet looks at its containers once a second, so this is up to a second before `running_scheduler`.
        """
        pod = self.scheduler()
        return pod if pod is not None and pod["spec"].get("nodeName") else None

    def workers(self) -> list[Object]:
        """The worker pods that are not terminating."""
        return [pod for pod in self._component("worker") if self._ours(pod)]

    def _ours(self, pod: Object) -> bool:
        """Whether `pod` is to stay: not terminating, nor left over from an earlier cluster of the same name."""
        since = self.cluster["metadata"]["creationTimestamp"] if self.cluster else ""
        metadata = pod["metadata"]
        return not metadata.get("deletionTimestamp") and str(metadata["creationTimestamp"]) >= since

    def going(self) -> bool:
        """Whether the DaskCluster is gone and every pod of it is terminating."""
        return self.cluster is None and all(pod["metadata"].get("deletionTimestamp") for pod in self.pods.values())

    def replicas(self) -> int:
        """Workers that all groups together are to have."""
        specs = (group["spec"].get("worker") or group["spec"] for group in self.groups.values())
        return sum(int(spec.get("replicas") or 0) for spec in specs)

    def _component(self, component: str) -> list[Object]:
        label = self._layout.component_label
        return [pod for pod in self.pods.values() if pod["metadata"]["labels"].get(label) == component]

    def problems(self, *, workers: bool = True) -> list[diagnosis.Problem]:
        """What keeps the cluster from starting, the certain things first."""
        pods = [pod for pod in [self.scheduler(), *(self.workers() if workers else [])] if pod is not None]
        found = [*map(diagnosis.pod_problem, pods), diagnosis.resource_problem(self.cluster)]
        if workers:
            groups = (group for group in self.groups.values() if "worker" in group["spec"])
            found += map(diagnosis.resource_problem, groups)
        return sorted((problem for problem in found if problem is not None), key=lambda problem: not problem.certain)
