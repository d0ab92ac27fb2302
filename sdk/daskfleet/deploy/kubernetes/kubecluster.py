"""`KubeCluster`: a Dask cluster on Kubernetes, from Python.

It writes DaskCluster, DaskWorkerGroup and DaskAutoscaler resources and nothing else; the operator makes the pods. What
it reads, it reads by `View`; how it reaches the scheduler is `Link`'s, and requests without a scheduler are
`lifecycle`'s. Making, finding and ending a cluster is here; what can be done with it meanwhile is `ConnectedCluster`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from daskfleet.deploy.kubernetes import fixed, lifecycle
from daskfleet.deploy.kubernetes import spec as specs
from daskfleet.deploy.kubernetes.api import Api, load_library
from daskfleet.deploy.kubernetes.connected import ConnectedCluster
from daskfleet.deploy.kubernetes.credentials import configured_context, is_configured
from daskfleet.deploy.kubernetes.errors import ClusterExists, KubernetesError, StartTimeout
from daskfleet.deploy.kubernetes.link import Link
from daskfleet.deploy.kubernetes.options import CreateMode, configured, load_spec
from daskfleet.deploy.kubernetes.progress import Progress
from daskfleet.deploy.kubernetes.spec import Env, Spec
from daskfleet.deploy.status import Status

# Seconds that `close` waits for the garbage collector to reach the pods; it will, also without us.
CLOSE_PATIENCE = 5.0

# A quarter of a second of imports that nobody is to wait for who makes a cluster, nor who has no Kubernetes.
if is_configured():
    with contextlib.suppress(ImportError):  # `KubeCluster` says what is missing
        load_library()


class KubeCluster(ConnectedCluster):
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
        By default never, but a cluster with our engine that ends with its session (`shutdown_on_close`) is ended as
        well when for an hour no client has been connected and nothing has been computed: its session was killed.
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
        environment (``.yml``), ``local`` for the packages of this Python, ``image`` for nothing. It is installed before
        a worker starts; of the first and the third, what is already in the image is not installed again. Conda
        environments are installed by the image's micromamba, mamba or conda, else by rattler, which pip gets.
    environment_cache
        The source of a volume that pods share, for it to be installed once and not in each pod:
        ``{"hostPath": {"path": "/var/cache/daskfleet"}}`` for once on each node, where pods may use that, or
        ``{"persistentVolumeClaim": {"claimName": ...}}``.
    tls
        Encrypt all connections by certificates of the cluster's own; what ``kubernetes.tls`` says, else True with our
        engine and False with upstream's. Of a cluster that exists it is found out.
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
        tls: bool | None = None,
        loop: Any = None,
        asynchronous: bool = False,
        quiet: bool = False,
        context: str | None = None,
    ) -> None:
        self.namespace = configured("namespace", namespace, None)
        self.engine = str(configured("engine", engine, "daskfleet"))
        self.image = str(configured("image", image, specs.engine_called(self.engine).image))
        self.resource_timeout = float(configured("resource-timeout", resource_timeout, 60))
        self.shutdown_on_close = bool(configured("shutdown-on-close", shutdown_on_close, True))
        self.create_mode = CreateMode(configured("create-mode", create_mode, CreateMode.CREATE_OR_CONNECT))
        self._resources = configured("resources", resources, None)
        self._env = configured("env", env, None)
        self._worker_command = configured("worker-command", worker_command, None)
        self._environment = {
            "environment": configured("environment", environment, None),
            "environment_cache": configured("environment-cache", environment_cache, None),
        }
        self._forward = port_forward_cluster_ip
        self._forward_port = int(configured("scheduler-forward-port", scheduler_forward_port, 0) or 0)
        self._context = context if context is not None else configured_context()
        self._link: Link | None = None
        self._fixed: fixed.Fixed | None = None
        self._made = False
        if name is not None:
            name, self.namespace = lifecycle.split(name, self.namespace)
        custom = load_spec(configured("custom-cluster-spec", custom_cluster_spec, None))
        self.namespace = self.namespace or (custom or {}).get("metadata", {}).get("namespace")
        chosen = configured("name", name, None) or (custom or {}).get("metadata", {}).get("name") or specs.new_name()
        super().__init__(name=specs.check_name(chosen), asynchronous=asynchronous, loop=loop, quiet=quiet)
        idle_timeout = configured("idle-timeout", idle_timeout, None)
        self._spec = custom or specs.make_cluster_spec(
            self.name,
            self.image,
            int(configured("n-workers", n_workers, 0)),
            self._resources,
            self._env,
            self._worker_command,
            str(configured("scheduler-service-type", scheduler_service_type, "ClusterIP")),
            float(idle_timeout or 0),
            jupyter,
            self.engine,
            **self._environment,
            tls=configured("tls", tls, None),
        )
        if idle_timeout is None and custom is None and self.shutdown_on_close and self.engine == "daskfleet":
            specs.end_when_abandoned(self._spec)
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
