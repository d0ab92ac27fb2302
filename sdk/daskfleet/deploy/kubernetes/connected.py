"""What can be done with a cluster on Kubernetes once it is there: `ConnectedCluster`.

`KubeCluster` makes and ends it, and says how it is reached; scaling it, its worker groups and looking into it are here.
All of it works alike on what the operator made and on a Helm release (`_fixed`), but for worker groups, which are the
operator's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from daskfleet.deploy.cluster import Cluster, Log, Logs
from daskfleet.deploy.kubernetes import adoption, fixed, lifecycle
from daskfleet.deploy.kubernetes import spec as specs
from daskfleet.deploy.kubernetes.errors import StartFailed
from daskfleet.deploy.kubernetes.link import Link
from daskfleet.deploy.kubernetes.logs import read_logs
from daskfleet.deploy.kubernetes.spec import Env, Spec

logger = logging.getLogger(__name__)


class Adapting:
    """Adaptive scaling that is being asked for: its bounds, and something to await.

    Attributes
    ----------
    minimum, maximum
        Bounds of the number of workers.
    """

    def __init__(self, minimum: int, maximum: float, doing: asyncio.Future[Any]) -> None:
        self.minimum = minimum
        self.maximum = maximum
        self._doing = doing

    def __await__(self) -> Generator[Any, None, Any]:
        return self._doing.__await__()


class ConnectedCluster(Cluster):
    """A cluster that exists, as seen through its `Link`.

    Attributes
    ----------
    namespace, image, engine, resource_timeout
        As `KubeCluster` has them.
    """

    namespace: str | None
    image: str
    engine: str
    resource_timeout: float
    _resources: Mapping[str, Any] | None
    _env: Env | None
    _worker_command: str | Sequence[str] | None
    _environment: dict[str, Any]
    _link: Link | None
    _fixed: fixed.Fixed | None

    def _connected(self) -> Link:
        if self._link is None:
            raise RuntimeError(f"{self!r} is {self.status}")
        return self._link

    # ------------------------------------------------------------------------------------------------------- scaling

    def scale(self, n: int, worker_group: str = "default") -> Any:
        """Ask for `n` workers in a worker group, and end adaptive scaling.

        Returns when the API server has it; see `wait_for_workers`. Workers that go hand their data over first.

        Parameters
        ----------
        n
            Workers in this group.
        worker_group
            ``default``, or the name given to `add_worker_group`.
        """
        if self._adaptive is not None:
            self._adaptive.stop()
        return self.sync(self._scale, n, worker_group)

    async def _scale(self, n: int, worker_group: str = "default") -> None:
        link = self._connected()
        if self._fixed is not None:
            return await adoption.scale(link, worker_group, n)
        group = specs.group_name(self.name, worker_group)
        if worker_group == "default" and group not in link.view.groups:  # the operator is about to make it
            async with asyncio.timeout(self.resource_timeout):
                await link.view.wait_until(lambda: group in link.view.groups)
        scaled = await lifecycle.scale_group(link.api, link.namespace, self.name, n, worker_group)
        link.view.note("DaskWorkerGroup", scaled)

    async def _scale_down(self, names: list[str]) -> None:
        if self._fixed is None:
            return await super()._scale_down(names)
        await fixed.scale_down(self._connected(), names)

    def adapt(self, minimum: int = 0, maximum: int | float = 10, *, enabled: bool = True, **options: Any) -> Any:  # type: ignore[override]
        """Let the operator scale the default worker group with the load; it goes on when this session has ended.

        The workers of a Helm release are handed over to the operator for it: `helm upgrade` leaves their number alone
        meanwhile. Where there is no operator, a release is adapted from this session, which is said.

        Parameters
        ----------
        minimum, maximum
            Bounds of the number of workers.
        enabled
            False ends it, and gives a Helm release its workers back; their number stays as it is. `scale` ends it, too.
        options
            Those of `daskfleet.deploy.adaptive.Adaptive`, for a Helm release that is to be adapted from this session.

        Returns
        -------
        Adaptive or None
            What decides, if it is this session. An asynchronous cluster gives something to await, with the bounds as
            `minimum` and `maximum`, as those expect who show them.
        """
        if not enabled:
            return self.sync(self._end_adapt)
        if options and self._fixed is None:
            raise TypeError(f"the operator decides {', '.join(options)}: adapt takes minimum, maximum and enabled")
        if options:
            return self._adapt_from_here(minimum, maximum, **options)
        doing = self.sync(self._adapt, minimum, maximum)
        return Adapting(minimum, maximum, doing) if isinstance(doing, asyncio.Future) else doing

    async def _adapt(self, minimum: int, maximum: float) -> Any:
        link = self._connected()
        if self._fixed is None:
            return await lifecycle.set_autoscaler(link.api, link.namespace, self.name, minimum, maximum)
        if self._adaptive is not None:
            self._adaptive.stop()
        reason = await adoption.hand_over(link, minimum, maximum)
        if reason is None:
            return None
        logger.warning("cluster %s is adapted from this session, and only as long: %s", self.name, reason)
        return self._adapt_from_here(minimum, maximum)

    def _adapt_from_here(self, minimum: int, maximum: float, **options: Any) -> Any:
        return super().adapt(minimum, maximum, **options)

    async def _end_adapt(self) -> None:
        link = self._connected()
        if self._adaptive is not None:
            self._adaptive.stop()
        if self._fixed is not None:
            await adoption.take_back(link)
        else:
            await lifecycle.delete_autoscaler(link.api, link.namespace, self.name)

    def add_worker_group(
        self,
        name: str,
        n_workers: int = 3,
        image: str | None = None,
        resources: Mapping[str, Any] | None = None,
        worker_command: str | Sequence[str] | None = None,
        env: Env | None = None,
        custom_spec: Spec | None = None,
    ) -> Any:
        """Add a group of workers that differ from the default ones; it goes with the cluster.

        Parameters
        ----------
        name
            What to call it in `scale` and `delete_worker_group`; the resource is ``{cluster}-{name}``.
        n_workers, image, resources, worker_command, env
            As in `KubeCluster`, whose own are the defaults.
        custom_spec
            The ``worker`` part of a DaskWorkerGroup (see `make_worker_spec`), instead of all these.
        """
        worker = custom_spec or specs.make_worker_spec(
            image or self._image_in_use(),
            n_workers,
            resources if resources is not None else self._resources,
            env if env is not None else self._env,
            worker_command or self._worker_command,
            self.engine,
            **self._environment,
        )
        return self.sync(self._add_worker_group, name, worker)

    def _image_in_use(self) -> str:
        """The cluster's own, which is not our default when we connected to one that exists."""
        try:
            cluster = self._connected().view.cluster or {}
            return str(cluster["spec"]["worker"]["spec"]["containers"][0]["image"])
        except (KeyError, IndexError):
            return self.image

    async def _add_worker_group(self, name: str, worker: Spec) -> None:
        link = self._connected()
        made = await lifecycle.create_group(link.api, link.namespace, self.name, name, worker)
        link.view.note("DaskWorkerGroup", made)

    def delete_worker_group(self, name: str) -> Any:
        """Delete a worker group and its workers; their data moves to the others first. No error if it is gone."""
        return self.sync(self._delete_worker_group, name)

    async def _delete_worker_group(self, name: str) -> None:
        link = self._connected()
        await lifecycle.delete_group(link.api, link.namespace, self.name, name)

    # ------------------------------------------------------------------------------------------------------- looking

    def get_client(self) -> Any:
        """A client of this cluster: daskfleet's `Client`, or ``distributed.Client`` where upstream's engine runs.

        Close it, or use it by ``with``; await it when the cluster is asynchronous.
        """
        if self.engine == "daskfleet":
            return super().get_client()
        try:
            from distributed import Client, Security  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise ImportError(
                "this cluster runs upstream's engine, whose client is in: pip install distributed"
            ) from None
        certificates = self._connected().certificates
        security = Security(require_encryption=True, **certificates) if certificates else None
        return Client(self.scheduler_address, security=security, asynchronous=self._asynchronous)

    async def _fetch(self, path: str, **query: Any) -> Any:
        return await self._connected().fetch(path, **query)

    async def _shortfall(self) -> str:
        link = self._connected()
        problems = link.view.problems()
        if not problems:
            return ""
        if problems[0].certain:
            raise StartFailed(await link.explain(problems[0]))
        return problems[0].sentence

    @property
    def requested(self) -> set[str]:
        """Names of the worker pods that are not terminating."""
        return {pod["metadata"]["name"] for pod in self._link.view.workers()} if self._link else set()

    @property
    def plan(self) -> set[str]:
        """Names of the workers that there are to be; those that have no pod yet count as ``pending-0`` and so on."""
        have = self.requested
        missing = (self._link.view.replicas() if self._link else 0) - len(have)
        return have | {f"pending-{i}" for i in range(missing)}

    @property
    def jupyter_link(self) -> str:
        """URL of the Jupyter server in the scheduler, if ``jupyter=True`` started one."""
        return f"{self.http_address}/jupyter/" if self.http_address else ""

    async def _get_logs(self, cluster: bool = True, scheduler: bool = True, workers: bool = True) -> Logs:
        link = self._connected()
        layout = self._fixed.layout if self._fixed else fixed.OURS
        logs = await read_logs(link.api, link.namespace, self.name, scheduler=scheduler, workers=workers, layout=layout)
        if cluster:
            conditions = ((link.view.cluster or {}).get("status") or {}).get("conditions") or []
            told = [f"{c['type']}={c['status']} {c.get('reason')}: {c.get('message')}" for c in conditions]
            logs = Logs({self.name: Log("\n".join(told)), **logs})
        return logs
