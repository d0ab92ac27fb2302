"""A live connection to one cluster: `Link` holds all that a `KubeCluster` keeps on the event loop.

It is a class of its own so that nothing on the loop refers to the `KubeCluster`, which can thus be collected. Order
matters for speed and for errors: local ports are bound before anything is created (a port in use costs nothing then),
the scheduler's pod is tried from the moment that it has a node (that it is Running is seen up to a second late, that it
is Ready up to two), and the token is read while the container starts.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from daskfleet.deploy.kubernetes import connect, diagnosis
from daskfleet.deploy.kubernetes.api import Api, resource_path
from daskfleet.deploy.kubernetes.connect import Endpoint
from daskfleet.deploy.kubernetes.credentials import SERVICE_ACCOUNT
from daskfleet.deploy.kubernetes.errors import (
    INSTALL_OPERATOR,
    ApiError,
    Forbidden,
    KubernetesError,
    OperatorMissing,
    StartFailed,
)
from daskfleet.deploy.kubernetes.fixed import Fixed
from daskfleet.deploy.kubernetes.forward import PortForward
from daskfleet.deploy.kubernetes.spec import COMM_PORT, HTTP_PORT
from daskfleet.deploy.kubernetes.view import Object, View

TOKEN_VARIABLE = "DASKFLEET_TOKEN"
TLS_VARIABLE = "DASK_DISTRIBUTED__COMM__TLS__"
# An operator takes notice within milliseconds; one that restarts, or whose leader died (15 s of lease), within this.
OPERATOR_PATIENCE = 30.0
LOG_LINES = 10
# Seconds for the scheduler to answer at its Service's outside address before a port is forwarded instead.
PUBLIC_PATIENCE = 3.0


class Link:
    """The view of a cluster, the way to its scheduler, and the scheduler's HTTP.

    Parameters
    ----------
    api
        Owned from now on: closed with the link.
    namespace, name
        The cluster.
    forward
        Whether to forward ports: None to decide by where this process runs.
    comm_port
        Local port for the scheduler's, 0 for a free one.
    fixed
        What the cluster is made of, if no operator made it.

    Attributes
    ----------
    view
        What the API server shows.
    scheduler_address, http_address, token, certificates, engine
        Known after `reach`; the certificates as `Security` takes them.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        *,
        forward: bool | None = None,
        comm_port: int = 0,
        fixed: Fixed | None = None,
    ) -> None:
        self.api = api
        self.namespace = namespace
        self.name = name
        self.fixed = fixed
        self.view = View(api, namespace, name, fixed)
        self.scheduler_address = ""
        self.http_address = ""
        self.token: str | None = None
        self.certificates: dict[str, Any] = {}
        self.engine = "daskfleet"
        self._forward = forward
        self._comm_port = comm_port
        self._forwards: tuple[PortForward, PortForward] | None = None
        self._session: Any = None

    @property
    def inside(self) -> bool:
        """Whether Service names can be used from here."""
        if self._forward is not None:
            return not self._forward
        return connect.inside(
            os.environ,
            api_host=self.api.host,
            in_cluster_credentials=self.api.in_cluster,
            ca=connect.read(self.api.ca_file),
            pod_ca=connect.read(SERVICE_ACCOUNT / "ca.crt"),
        )

    async def open(self) -> None:
        """Start looking, and bind the local ports.

        Raises
        ------
        PortInUse
            If the local port asked for is taken.
        """
        import aiohttp

        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        if not self.inside:
            self._forwards = (self._make_forward(COMM_PORT, self._comm_port), self._make_forward(HTTP_PORT, 0))
            for forward in self._forwards:
                await forward.start()
        self.view.start()

    def _make_forward(self, port: int, local_port: int) -> PortForward:
        view = self.view

        async def pod() -> str:
            return str((await view.wait_until(view.placed_scheduler))["metadata"]["name"])

        return PortForward(self.api, self.namespace, pod, port, local_port)

    async def close(self) -> None:
        """Give back everything. Idempotent."""
        await self.view.close()
        for forward in self._forwards or ():
            await forward.close()
        if self._session is not None:
            await self._session.close()
        await self.api.close()

    # ----------------------------------------------------------------------------------------------------- starting

    async def reach(self) -> dict[str, Any]:
        """Wait for the scheduler, and return its identity; the caller sets the deadline.

        Raises
        ------
        StartFailed
            As soon as it is certain that the scheduler will not come.
        """
        watchdog = asyncio.create_task(self._operator_takes_notice())
        token = asyncio.create_task(self._read_secrets())
        identity = asyncio.create_task(self._find_scheduler())
        doomed = asyncio.create_task(self._certain_failure())
        tasks = {watchdog, token, identity, doomed}
        try:
            pending: set[asyncio.Task[Any]] = {watchdog, token, identity, doomed}
            while not (token.done() and identity.done()):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            self.token, self.certificates = token.result()
            return identity.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _operator_takes_notice(self) -> None:
        try:
            async with asyncio.timeout(OPERATOR_PATIENCE):
                await self.view.wait_until(lambda: diagnosis.reconciled(self.view.cluster) or self.view.scheduler())
        except TimeoutError:
            raise OperatorMissing(
                f"no operator reconciled DaskCluster {self.namespace}/{self.name} within {OPERATOR_PATIENCE:g} s: "
                f"is the operator installed, and does it watch this namespace? To install it: {INSTALL_OPERATOR}"
            ) from None

    async def _certain_failure(self) -> None:
        """Raise what waiting does not mend; return never."""
        seen = False
        while True:
            for problem in self.view.problems(workers=False):
                if problem.certain:
                    raise StartFailed(await self.explain(problem))
            seen = seen or self.view.cluster is not None
            if seen and self.view.cluster is None:
                raise StartFailed(f"DaskCluster {self.namespace}/{self.name} was deleted while it started")
            await self.view.change()

    async def _read_secrets(self) -> tuple[str | None, dict[str, Any]]:
        """Token and certificates as the scheduler's pod gets them: from Secrets, or as a plain value, or not at all."""
        pod = await self.view.wait_until(self.view.scheduler)
        entry = _variable(pod, TOKEN_VARIABLE) or {}
        token: str | None = entry.get("value") or None
        if reference := (entry.get("valueFrom") or {}).get("secretKeyRef"):
            token = (await self._secret(reference["name"]))[reference["key"]]
        places = _certificates(pod)
        secrets = {name: await self._secret(name) for name in {place.secret for place in places}}
        values = [secrets[place.secret][place.key] for place in places]
        return token, dict(zip(("tls_ca_file", "tls_client_cert", "tls_client_key"), values, strict=False))

    async def _secret(self, name: str) -> dict[str, str]:
        """The content of a Secret, once there is one."""
        path = resource_path("secrets", self.namespace, name)
        while True:
            try:
                data = (await self.api.get(path))["data"]
                return {key: base64.b64decode(value).decode() for key, value in data.items()}
            except ApiError as error:
                if error.status != 404:
                    raise
            await self.view.change()  # the pod cannot run before the Secret is there, so a change will come

    async def _find_scheduler(self) -> dict[str, Any]:
        # Name servers remember for seconds that a Service was not there yet, so inside it is asked for only when it is.
        await self.view.wait_until(self.view.placed_scheduler if self._forwards else self.view.running_scheduler)
        delay = 0.02
        while True:
            endpoint = await self._endpoint()
            self.http_address = f"http://{endpoint.host}:{endpoint.http_port}"
            try:
                identity: dict[str, Any] = await self.fetch("/json/identity.json")
                if public := await self._public_endpoint(identity.get("id")):
                    endpoint = public
                    self.http_address = f"http://{endpoint.host}:{endpoint.http_port}"
                scheme = urlsplit(str(identity.get("address", ""))).scheme or "tcp"
                self.scheduler_address = f"{scheme}://{endpoint.host}:{endpoint.comm_port}"
                self.engine = await self._engine()
                return identity
            except OSError:
                self._raise_if_forbidden()
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, 0.5)

    async def _engine(self) -> str:
        """Which engine the scheduler is of, told by what only ours can be asked."""
        async with self._session.get(f"{self.http_address}/api/v1/workers_to_close?n=0") as response:
            return "dask" if response.status == 404 else "daskfleet"

    def _raise_if_forbidden(self) -> None:
        for forward in self._forwards or ():
            if isinstance(forward.problem, Forbidden):
                raise forward.problem

    async def _endpoint(self) -> Endpoint:
        service = f"{self.name}-scheduler"
        if self._forwards is None:
            if self.fixed is not None:  # charts differ in the Service's name and ports; in the pod's they agree
                pod = await self.view.wait_until(self.view.running_scheduler)
                return Endpoint(pod["status"]["podIP"], COMM_PORT, HTTP_PORT)
            return connect.in_cluster_endpoint(service, self.namespace)
        comm, http = self._forwards
        return Endpoint("127.0.0.1", comm.local_port, http.local_port)

    async def _public_endpoint(self, scheduler_id: Any) -> Endpoint | None:
        """The Service's address outside the cluster, if it has one and this very scheduler answers there.

        A node's address may mean something else where we are, or end at a proxy that takes every connection.
        """
        spec = ((self.view.cluster or {}).get("spec") or {}).get("scheduler") or {}
        kind = (spec.get("service") or {}).get("type", "ClusterIP")
        if kind == "ClusterIP" or self._forwards is None or self._forward or self.fixed is not None:
            return None
        try:
            async with asyncio.timeout(PUBLIC_PATIENCE):
                found = await self.api.get(resource_path("services", self.namespace, f"{self.name}-scheduler"))
                nodes = (await self.api.get("/api/v1/nodes"))["items"] if kind == "NodePort" else []
                endpoint = connect.outside_endpoint(found, nodes)
                if endpoint is None:
                    return None
                answers = await self._answers(endpoint, scheduler_id)
                while answers is None:  # the node's rules come up to a second after the scheduler
                    await asyncio.sleep(0.1)
                    answers = await self._answers(endpoint, scheduler_id)
                return endpoint if answers else None
        except (KubernetesError, OSError, AttributeError):  # a firewall, a balancer not ready, no right to list nodes
            return None

    async def _answers(self, endpoint: Endpoint, scheduler_id: Any) -> bool | None:
        """Whether this very scheduler answers there; None while nobody does."""
        try:
            url = f"http://{endpoint.host}:{endpoint.http_port}/json/identity.json"
            if (await self._get(url)).get("id") != scheduler_id:
                return False
            _, writer = await asyncio.open_connection(endpoint.host, endpoint.comm_port)
            writer.close()
            return True
        except OSError:
            return None

    # ------------------------------------------------------------------------------------------------------- telling

    async def explain(self, problem: diagnosis.Problem) -> str:
        """The problem's sentence, with the last lines of the pod's log where it has one."""
        if problem.pod is None:
            return problem.sentence
        lines = ""
        with contextlib.suppress(KubernetesError):
            previous = "true" if problem.previous else None
            which = {"container": problem.container} if problem.container else {}
            lines = await self.log(problem.pod, tailLines=LOG_LINES, previous=previous, **which)
        return problem.sentence + (f"\nIts last log lines:\n{lines.rstrip()}" if lines.strip() else "")

    async def state(self) -> str:
        """What the cluster says about itself when it is not ready, for the end of a deadline."""
        problems = self.view.problems()
        if problems:
            return await self.explain(problems[0])
        scheduler = self.view.scheduler()
        if scheduler is None:
            seen = diagnosis.reconciled(self.view.cluster)
            return "the operator has made no scheduler pod" if seen else "the operator has not taken notice of it"
        name = scheduler["metadata"]["name"]
        what = f"pod {name} is {diagnosis.phase(scheduler)}"
        if not diagnosis.running(scheduler):
            return what
        reason = next((f": {f.problem}" for f in self._forwards or () if f.problem), "")
        return await self.explain(diagnosis.Problem(f"{what}, but its scheduler does not answer{reason}", pod=name))

    async def log(self, pod: str, **params: Any) -> str:
        """The log of a pod; parameters as in the API (``tailLines``, ``previous``)."""
        return await self.api.text(resource_path("pods", self.namespace, pod, "log"), **params)

    async def retire(self, names: list[str]) -> dict[str, Any]:
        """Have the scheduler move these workers' data away and give them no more work.

        Returns
        -------
        dict
            ``{address: identity}`` of those that did.

        Raises
        ------
        OSError
            If the scheduler does not answer, or cannot do it.
        """
        import aiohttp

        url = f"{self.http_address}/api/v1/retire_workers"
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        body = {"names": names}
        try:
            async with self._session.post(url, json=body, headers=headers) as response:
                if response.status != 200:
                    raise OSError(f"POST {url} answers {response.status}")
                retired: dict[str, Any] = await response.json()
                return retired
        except aiohttp.ClientError as error:
            raise OSError(f"POST {url}: {error}") from None

    async def fetch(self, path: str, **query: Any) -> Any:
        """GET JSON from the scheduler. Raises OSError when it does not answer."""
        return await self._get(self.http_address + path + ("?" + urlencode(query) if query else ""))

    async def _get(self, url: str) -> Any:
        import aiohttp

        try:
            async with self._session.get(url) as response:
                body = await response.read()
                if response.status != 200:
                    raise OSError(f"GET {url} answers {response.status}")
            return json.loads(body)
        except (aiohttp.ClientError, ValueError) as error:
            raise OSError(f"GET {url}: {error}") from None


class SecretKey(NamedTuple):
    """A value in a Secret."""

    secret: str
    key: str


def _certificates(pod: Object) -> list[SecretKey]:
    """Where a scheduler's authority, certificate and key come from; nothing without TLS.

    The operator hands their text over in variables, the chart mounts files that variables name.
    """
    folders = {
        mount["mountPath"]: volume["secret"]["secretName"]
        for volume in pod["spec"].get("volumes") or ()
        for container in pod["spec"]["containers"]
        for mount in container.get("volumeMounts") or ()
        if mount["name"] == volume["name"] and "secret" in volume
    }
    found = []
    for part in ("CA_FILE", "SCHEDULER__CERT", "SCHEDULER__KEY"):
        entry = _variable(pod, TLS_VARIABLE + part) or {}
        path = PurePosixPath(entry.get("value") or "")
        if reference := (entry.get("valueFrom") or {}).get("secretKeyRef"):
            found.append(SecretKey(reference["name"], reference["key"]))
        elif str(path.parent) in folders:
            found.append(SecretKey(folders[str(path.parent)], path.name))
    return found if len(found) == 3 else []


def _variable(pod: Object, name: str) -> dict[str, Any] | None:
    for container in pod["spec"]["containers"]:
        for entry in container.get("env") or []:
            if entry.get("name") == name:
                found: dict[str, Any] = entry
                return found
    return None
