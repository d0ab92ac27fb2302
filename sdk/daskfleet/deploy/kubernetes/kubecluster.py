"""`KubeCluster`: a Dask cluster on Kubernetes, from Python.

It writes DaskCluster, DaskWorkerGroup and DaskAutoscaler resources and nothing else; the operator makes the pods. What
it reads, it reads by `View`; how it reaches the scheduler is `Link`'s, and requests without a scheduler are
`lifecycle`'s. It is long because it is what users see: half of it says what their parameters and methods mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from collections.abc import Generator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Self

from daskfleet.deploy.cluster import Cluster, Log, Logs
from daskfleet.deploy.kubernetes import adoption, fixed, lifecycle
from daskfleet.deploy.kubernetes import spec as specs
from daskfleet.deploy.kubernetes.api import Api, load_library
from daskfleet.deploy.kubernetes.credentials import configured_context
from daskfleet.deploy.kubernetes.errors import (
    ClusterExists,
    InvalidManifest,
    KubernetesError,
    StartFailed,
    StartTimeout,
)
from daskfleet.deploy.kubernetes.link import Link
from daskfleet.deploy.kubernetes.progress import Progress
from daskfleet.deploy.kubernetes.spec import Env, Spec
from daskfleet.deploy.status import Status

logger = logging.getLogger(__name__)

# Seconds that `close` waits for the garbage collector to reach the pods; it will, also without us.
CLOSE_PATIENCE = 5.0


class CreateMode(Enum):
    """What `KubeCluster` does about a cluster that exists, or does not."""

    CREATE_ONLY = "CREATE_ONLY"
    CREATE_OR_CONNECT = "CREATE_OR_CONNECT"
    CONNECT_ONLY = "CONNECT_ONLY"


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


class KubeCluster(Cluster):
    """A Dask cluster on Kubernetes, made and scaled by daskfleet's operator.

    A cluster of this `name` that a Helm chart has installed (daskfleet's, or dask's own ``dask`` chart) is found as
    well: it is scaled by its worker Deployment, adapted by the operator if there is one, and never deleted.

    Every default comes from dask's configuration ``kubernetes.*`` (``kubernetes.image``, ``kubernetes.worker-command``
    …) where that says something. Returns as soon as the scheduler answers; workers start meanwhile
    (`wait_for_workers`).

    Parameters
    ----------
    name
        The cluster's name, ``dask-{user}-{random}`` by default.
    namespace
        By default that of the kubeconfig's context, or of the pod that this runs in.
    image
        Container image of scheduler and workers.
    n_workers
        Workers to start with.
    resources
        ``{"requests": {...}, "limits": {...}}`` of each container.
    env
        Environment variables of the containers, ``{name: value}`` or a list as pods have it.
    worker_command
        The command of the workers.
    port_forward_cluster_ip
        True to go through the API server even where Service names could be used, False never to; by default decided
        by whether this process runs inside the same Kubernetes cluster.
    create_mode
        Whether to connect to a cluster of this name that exists (its specification stays as it is), to make it, or
        either.
    shutdown_on_close
        Delete the cluster when this object is closed, garbage-collected, or the interpreter ends.
    idle_timeout
        Seconds without work after which the operator deletes the cluster, 0 for never: what ends a cluster that nobody
        comes back to, or whose session was killed, even before its scheduler was up (then after 15 minutes at least).
    resource_timeout
        Seconds within which the scheduler must answer.
    scheduler_service_type
        ``ClusterIP``, ``NodePort`` or ``LoadBalancer``.
    custom_cluster_spec
        A whole DaskCluster resource as a dict (see `make_cluster_spec`) or the path of a YAML file; overrides all of
        `image` to `worker_command`.
    scheduler_forward_port
        Local port for the scheduler when it is forwarded; a free one by default.
    jupyter
        Run a Jupyter server inside the scheduler, at `jupyter_link`.
    engine
        ``daskfleet``, or ``dask`` to run upstream's ``distributed`` (image, commands and client) under the same
        resources. Of a cluster that exists it is found out.
    environment
        What the workers are to have besides their image's packages: a requirements or lock file (``.txt``), a conda
        environment (``.yml``; the image must have conda), ``local`` for the packages of this Python, ``image`` for
        nothing. It is installed before a worker starts; what is already in the image is not installed again.
    environment_cache
        The source of a volume that pods share, for it to be installed once and not in each pod:
        ``{"hostPath": {"path": "/var/cache/daskfleet"}}`` for once on each node, where pods may use that, or
        ``{"persistentVolumeClaim": {"claimName": ...}}``.
    tls
        Encrypt all connections by certificates of the cluster's own. Of a cluster that exists it is found out.
    loop, asynchronous, quiet
        As in `daskfleet.deploy.cluster.Cluster`.
    context
        Context of the kubeconfig; by default what ``kubernetes.context`` says, else the current one.

    Raises
    ------
    KubernetesError
        One of its subclasses (`daskfleet.deploy.kubernetes.errors` has the tree), with what the cluster says. What
        this object had made is deleted again.

    Examples
    --------
    >>> with KubeCluster(name="analysis", n_workers=4) as cluster, cluster.get_client() as client:  # doctest: +SKIP
    ...     client.submit(sum, [1, 2, 3]).result()
    6
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        namespace: str | None = None,
        image: str | None = None,
        n_workers: int | None = None,
        resources: Mapping[str, Any] | None = None,
        env: Env | None = None,
        worker_command: str | Sequence[str] | None = None,
        port_forward_cluster_ip: bool | None = None,
        create_mode: CreateMode | str | None = None,
        shutdown_on_close: bool | None = None,
        idle_timeout: float | None = None,
        resource_timeout: float | None = None,
        scheduler_service_type: str | None = None,
        custom_cluster_spec: Spec | str | Path | None = None,
        scheduler_forward_port: int | None = None,
        jupyter: bool = False,
        engine: str | None = None,
        environment: str | Path | None = None,
        environment_cache: Mapping[str, Any] | None = None,
        tls: bool = False,
        loop: Any = None,
        asynchronous: bool = False,
        quiet: bool = False,
        context: str | None = None,
    ) -> None:
        self.namespace = _configured("namespace", namespace, None)
        self.engine = str(_configured("engine", engine, "daskfleet"))
        self.image = str(_configured("image", image, specs.engine_called(self.engine).image))
        self.resource_timeout = float(_configured("resource-timeout", resource_timeout, 60))
        self.shutdown_on_close = bool(_configured("shutdown-on-close", shutdown_on_close, True))
        self.create_mode = CreateMode(_configured("create-mode", create_mode, CreateMode.CREATE_OR_CONNECT))
        self._resources = _configured("resources", resources, None)
        self._env = _configured("env", env, None)
        self._worker_command = _configured("worker-command", worker_command, None)
        self._environment = {
            "environment": _configured("environment", environment, None),
            "environment_cache": _configured("environment-cache", environment_cache, None),
        }
        self._forward = port_forward_cluster_ip
        self._forward_port = int(_configured("scheduler-forward-port", scheduler_forward_port, 0) or 0)
        self._context = context if context is not None else configured_context()
        self._link: Link | None = None
        self._fixed: fixed.Fixed | None = None
        self._made = False
        if name is not None:
            name, self.namespace = lifecycle.split(name, self.namespace)
        custom = _load(_configured("custom-cluster-spec", custom_cluster_spec, None))
        self.namespace = self.namespace or (custom or {}).get("metadata", {}).get("namespace")
        chosen = _configured("name", name, None) or (custom or {}).get("metadata", {}).get("name") or specs.new_name()
        super().__init__(name=specs.check_name(chosen), asynchronous=asynchronous, loop=loop, quiet=quiet)
        self._spec = custom or specs.make_cluster_spec(
            self.name,
            self.image,
            int(_configured("n-workers", n_workers, 0)),
            self._resources,
            self._env,
            self._worker_command,
            str(_configured("scheduler-service-type", scheduler_service_type, "ClusterIP")),
            float(_configured("idle-timeout", idle_timeout, 0)),
            jupyter,
            self.engine,
            **self._environment,
            tls=bool(_configured("tls", tls or None, False)),
        )
        self._spec.setdefault("metadata", {})["name"] = self.name
        if not self._asynchronous:
            load_library()  # on the caller's thread: it takes a third of a second, and others may be using the loop
            self.sync(self._ensure_started)

    @classmethod
    def from_name(cls, name: str, **options: Any) -> Self:
        """Connect to a cluster that exists, and leave it running when this object is closed.

        Parameters
        ----------
        name
            The cluster's name, or ``namespace/name``.
        options
            As for `KubeCluster`; ``shutdown_on_close`` is False unless given.

        Raises
        ------
        ClusterNotFound
            With the names of those that exist.
        """
        return cls(name=name, **{"create_mode": CreateMode.CONNECT_ONLY, "shutdown_on_close": False, **options})

    def sync(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().sync(function, *args, **kwargs)
        except KubernetesError as error:  # its sentence is all there is to know: spare users our frames
            raise error.with_traceback(None) from None

    # ------------------------------------------------------------------------------------------------------- life

    async def _start(self) -> None:
        await asyncio.to_thread(load_library)
        api = await Api.connect(self._context)
        self.namespace = self.namespace or api.namespace
        wants_new = self.create_mode is CreateMode.CREATE_ONLY
        self._fixed = None if wants_new else await fixed.find_fixed(api, self.namespace, self.name)
        link = self._link = Link(
            api, self.namespace, self.name, forward=self._forward, comm_port=self._forward_port, fixed=self._fixed
        )
        await link.open()
        with Progress(link.view, quiet=self.quiet):
            try:
                async with asyncio.timeout(self.resource_timeout) as deadline:
                    if self._fixed is None:
                        await self._create_or_find(link)
                    self._info = await link.reach()
            except TimeoutError:
                if not deadline.expired():
                    raise
                raise StartTimeout(
                    f"{self.namespace}/{self.name} did not start within {self.resource_timeout:g} s: "
                    + await link.state()
                ) from None
        self.scheduler_address, self.http_address = link.scheduler_address, link.http_address
        self.engine = link.engine
        self.direct_to_workers = link.inside  # pods' addresses mean nothing outside, nor does a forwarded 127.0.0.1
        from daskfleet.security import Security

        self.security = Security(token=link.token, **link.certificates)

    async def _create_or_find(self, link: Link) -> None:
        assert self.namespace is not None
        view = link.view
        while self.create_mode is not CreateMode.CONNECT_ONLY:
            try:
                return await self._create(link)
            except ClusterExists:
                if self.create_mode is CreateMode.CREATE_ONLY:
                    raise
            await view.wait_until(lambda: view.synced)
            if view.cluster is not None and not view.cluster["metadata"].get("deletionTimestamp"):
                return
            await view.wait_until(lambda: view.cluster is None)  # it is being deleted: make it anew
        await view.wait_until(lambda: view.synced)
        if view.cluster is None:
            others = await lifecycle.list_clusters(link.api, own=self.namespace)
            raise lifecycle.not_found(self.name, self.namespace, others)

    async def _create(self, link: Link) -> None:
        """Create the cluster, and know that we did even when we are interrupted meanwhile."""
        creating = asyncio.ensure_future(lifecycle.create_cluster(link.api, link.namespace, self._spec))
        try:
            await asyncio.shield(creating)
        except asyncio.CancelledError:
            await asyncio.wait({creating})
            self._made = creating.exception() is None
            raise
        self._made = True

    async def _stop(self) -> None:
        """Delete the cluster, if that is ours to do, and wait until it is gone and its pods are terminating."""
        link, self._link = self._link, None
        if link is None:
            return
        try:
            mine = self._made if self.status is Status.failed else self.shutdown_on_close and self._fixed is None
            if mine and self.namespace is not None:
                uid = link.view.cluster["metadata"]["uid"] if link.view.cluster else None
                await lifecycle.delete_cluster(link.api, self.namespace, self.name, uid)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_PATIENCE):
                        await link.view.wait_until(link.view.going)
        finally:
            await link.close()

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
        logs = await lifecycle.read_logs(
            link.api, link.namespace, self.name, scheduler=scheduler, workers=workers, layout=layout
        )
        if cluster:
            conditions = ((link.view.cluster or {}).get("status") or {}).get("conditions") or []
            told = [f"{c['type']}={c['status']} {c.get('reason')}: {c.get('message')}" for c in conditions]
            logs = Logs({self.name: Log("\n".join(told)), **logs})
        return logs


def _configured(key: str, given: Any, default: Any) -> Any:
    """What the caller gave, else dask's configuration ``kubernetes.{key}``, else the default."""
    if given is not None:
        return given
    import dask

    found = dask.config.get(f"kubernetes.{key}", None)
    return default if found is None else found


def _load(spec: Spec | str | Path | None) -> Spec | None:
    if spec is None or isinstance(spec, dict):
        return copy.deepcopy(spec)
    import yaml

    loaded = yaml.safe_load(Path(spec).read_text())
    if not isinstance(loaded, dict) or loaded.get("kind") != "DaskCluster":
        raise InvalidManifest(f"{spec} is not a DaskCluster manifest", 422)
    return loaded
