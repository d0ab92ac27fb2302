"""Which clusters there are, whatever made them: one list, and one way to scale, adapt, look into and end them.

Whoever makes clusters says how they are found by an entry point of the group ``dask_cluster_discovery``, as dask-ctl
has it: an asynchronous generator function of pairs of a name and a class, whose ``from_name(name)`` connects. Ours
yield `FoundCluster`, which unpacks into such a pair and besides knows how the cluster is doing and how to change it
without a connection to its scheduler, which may be what is broken. What other packages' discoverers yield is wrapped in
one that connects for everything.

A discoverer with a parameter `namespace` is told the one that was asked for, and its names are ``namespace/name``; one
without is asked only when no namespace matters. One that fails costs nothing but its own clusters: what it said is in
`Findings.problems`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskfleet import loop as loops
from daskfleet.exceptions import ClusterNotFound, DaskfleetError

if TYPE_CHECKING:
    from daskfleet.deploy.cluster import Logs

Read = Callable[[int | None], Awaitable["Logs"]]

GROUP = "dask_cluster_discovery"
#: Seconds for one discoverer to be through.
PATIENCE = 15.0
#: Seconds between two looks at logs that are followed.
FOLLOW = 1.0


@dataclass
class FoundCluster:
    """One cluster that exists.

    Attributes
    ----------
    name
        What its class calls it; ``namespace/name`` where there are namespaces.
    manager
        The class that connects to it, by ``from_name(name)``.
    status
        How it is doing, in one word; ``""`` when that is not known without connecting, as with all that follows.
    workers, ready
        Workers that it is to have, and those that it has.
    created
        Since when there is one.
    address
        Of its scheduler, where others can use it.
    made_by
        What made it: the class's name, or who else.
    """

    name: str
    manager: type[Any]
    status: str = ""
    workers: int | None = None
    ready: int | None = None
    created: datetime | None = None
    address: str = ""
    made_by: str = ""

    def __iter__(self) -> Any:
        return iter((self.name, self.manager))

    def connect(self, **options: Any) -> Any:
        """The cluster manager, connected; it leaves the cluster running when it is closed."""
        return self.manager.from_name(self.name, **options)

    def scale(self, n: int, worker_group: str = "default") -> None:
        """Ask for `n` workers; returns without waiting for them."""
        loops.sync(loops.shared_loop(), self._scale, n, worker_group)

    def adapt(self, minimum: int = 0, maximum: int | float = 10, *, enabled: bool = True) -> Any:
        """Let the load decide the number of workers.

        Returns
        -------
        Cluster or None
            None where the cluster itself does it from now on; else the connected manager, which does it until it is
            closed.
        """
        return loops.sync(loops.shared_loop(), self._adapt, minimum, maximum, enabled)

    def delete(self) -> None:
        """End the cluster."""
        loops.sync(loops.shared_loop(), self._delete)

    def logs(self, scheduler: bool = True, workers: bool = True, lines: int | None = None) -> Logs:
        """What the processes said last: all of it, or only so many `lines` of each."""
        logs: Logs = loops.sync(loops.shared_loop(), self._logs, scheduler, workers, lines)
        return logs

    def follow(
        self, scheduler: bool = True, workers: bool = True, lines: int | None = None
    ) -> Iterator[tuple[str, str]]:
        """Pairs of a process's name and a line of its log, as they come: what there is first, or its last `lines`.

        Processes that come later are followed, too. It ends with the cluster; close the iterator to end it before.
        """
        said = self._follow(scheduler, workers, lines)
        try:
            while (pair := loops.sync(loops.shared_loop(), _next, said)) is not None:
                yield pair
        finally:
            loops.sync(loops.shared_loop(), said.aclose)

    # ------------------------------------------------- for discoverers to do better, without connecting to a scheduler

    @contextlib.asynccontextmanager
    async def _opened(self, **options: Any) -> AsyncIterator[Any]:
        cluster = await _awaited(self.manager.from_name(self.name, asynchronous=True, **options))
        try:
            yield cluster
        finally:
            await _awaited(cluster.close())

    async def _scale(self, n: int, worker_group: str) -> None:
        async with self._opened() as cluster:
            await _awaited(cluster.scale(n) if worker_group == "default" else cluster.scale(n, worker_group))

    async def _adapt(self, minimum: int, maximum: float, enabled: bool) -> Any:
        from daskfleet.deploy.adaptive import Adaptive

        if not enabled:
            raise DaskfleetError(f"{self.name} is adapted by the session that said so: end it there, or scale it")
        cluster = await _awaited(self.manager.from_name(self.name, asynchronous=True))
        if isinstance(await _awaited(cluster.adapt(minimum=minimum, maximum=maximum)), Adaptive):
            return cluster
        await _awaited(cluster.close())
        return None

    async def _delete(self) -> None:
        async with self._opened() as cluster:
            cluster.shutdown_on_close = True

    @contextlib.asynccontextmanager
    async def _reading(self, scheduler: bool, workers: bool) -> AsyncIterator[Read]:
        """What reads the logs, all of them or the last lines, as often as it is called."""
        from daskfleet.deploy.cluster import Log, Logs

        async def read(lines: int | None) -> Logs:
            logs = await _awaited(cluster.get_logs(cluster=False, scheduler=scheduler, workers=workers))
            return Logs({name: Log("\n".join(str(log).splitlines()[-(lines or 0) :])) for name, log in logs.items()})

        async with self._opened() as cluster:
            yield read

    async def _logs(self, scheduler: bool, workers: bool, lines: int | None) -> Logs:
        async with self._reading(scheduler, workers) as read:
            return await read(lines)

    async def _follow(self, scheduler: bool, workers: bool, lines: int | None) -> AsyncGenerator[tuple[str, str]]:
        """By reading again: processes keep their last lines, so what was not there before is new."""
        before: dict[str, list[str]] = {}
        first = True
        async with self._reading(scheduler, workers) as read:
            while True:
                for name, log in (await read(None)).items():
                    now = log.splitlines()
                    for line in now[-(lines or 0) :] if first else added(before.get(name, []), now):
                        yield name, line
                    before[name] = now
                first = False
                await asyncio.sleep(FOLLOW)

    @contextlib.asynccontextmanager
    async def _dashboard(self) -> AsyncIterator[tuple[str, bool]]:
        """URL of the dashboard, and whether it is good for longer than this context."""
        async with self._opened() as cluster:
            yield cluster.dashboard_link, False


@dataclass
class Findings:
    """What the discoverers found; `problems` has what those said that failed, by their names."""

    clusters: list[FoundCluster] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)

    def named(self, name: str, namespace: str | None = None) -> FoundCluster:
        """The one called `name`, or ``namespace/name``.

        Raises
        ------
        ClusterNotFound
            With the names that there are; or, when several namespaces have one, with these.
        """
        wanted = f"{namespace}/{name}" if namespace and "/" not in name else name
        exact = [found for found in self.clusters if found.name == wanted]
        matching = exact or [found for found in self.clusters if found.name.rpartition("/")[2] == wanted]
        if len(matching) == 1:
            return matching[0]
        if matching:
            names = sorted(found.name for found in matching)
            if len(set(names)) == 1:
                makers = " and ".join(sorted(found.manager.__name__ for found in matching))
                raise ClusterNotFound(f"{makers} have each a cluster {name!r}: end or rename one where it was made")
            raise ClusterNotFound(f"there are several clusters {name!r}: say which, {' or '.join(names)}")
        names = sorted(found.name for found in self.clusters)
        there = f"there are: {', '.join(names)}" if names else "there are none"
        failed = "".join(f"; {method} could not be asked: {said}" for method, said in self.problems.items())
        raise ClusterNotFound(f"there is no cluster {wanted!r}; {there}{failed}")


def added(before: list[str], now: list[str]) -> list[str]:
    """The lines of `now` behind those of `before`, the first of which may have been dropped meanwhile."""
    kept = next(before[start:] for start in range(len(before) + 1) if now[: len(before) - start] == before[start:])
    return now[len(kept) :]


async def _next(said: AsyncGenerator[tuple[str, str]]) -> tuple[str, str] | None:
    return await anext(said, None)


async def _awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


# ----------------------------------------------------------------------------------------------------------- discovery


def list_discovery_methods() -> dict[str, dict[str, Any]]:
    """The discoverers that are installed: ``{name: {"discover": function, "package": …, "version": …}}``."""
    methods = {}
    for point in metadata.entry_points(group=GROUP):
        about = {"package": point.dist.name, "version": point.dist.version} if point.dist else {}
        methods[point.name] = {"discover": point.load(), **about}
    return methods


async def discover(discovery: str | None = None, namespace: str | None = None) -> Findings:
    """Ask all discoverers at once, or only the one called `discovery`."""
    methods = list_discovery_methods()
    if discovery is not None and discovery not in methods:
        raise ValueError(f"no discovery method is called {discovery!r}; there are: {', '.join(sorted(methods))}")
    findings = Findings()

    async def ask(name: str, function: Callable[..., AsyncIterator[Any]]) -> None:
        takes_namespace = "namespace" in inspect.signature(function).parameters
        if namespace is not None and not takes_namespace:
            return
        try:
            async with asyncio.timeout(PATIENCE), contextlib.aclosing(_call(function, namespace)) as pairs:
                async for pair in pairs:
                    findings.clusters.append(pair if isinstance(pair, FoundCluster) else FoundCluster(*pair))
        except TimeoutError as error:
            findings.problems[name] = str(error) or f"no answer within {PATIENCE:g} s"
        except Exception as error:  # other packages' code, and no reason not to show the others
            findings.problems[name] = str(error) or type(error).__name__

    chosen = {name: about for name, about in methods.items() if discovery in (None, name)}
    await asyncio.gather(*(ask(name, about["discover"]) for name, about in chosen.items()))
    findings.clusters.sort(key=lambda found: found.name)
    return findings


def _call(function: Callable[..., Any], namespace: str | None) -> Any:
    return function() if namespace is None else function(namespace=namespace)


async def discover_clusters(discovery: str | None = None) -> AsyncIterator[FoundCluster]:
    """The clusters that exist, as dask-ctl's function of this name."""
    for found in (await discover(discovery)).clusters:
        yield found


async def discover_cluster_names(discovery: str | None = None) -> AsyncIterator[tuple[str, type[Any]]]:
    """Name and class of the clusters that exist, as dask-ctl's function of this name."""
    for found in (await discover(discovery)).clusters:
        yield found.name, found.manager


async def _find(name: str, namespace: str | None = None) -> FoundCluster:
    before, slash, _ = name.rpartition("/")
    if slash and namespace not in (None, before):
        raise ClusterNotFound(f"cluster {name!r} is not in namespace {namespace!r}")
    return (await discover(namespace=before if slash else namespace)).named(name, namespace)


def find_cluster(name: str, namespace: str | None = None) -> FoundCluster:
    """The cluster of this name (or ``namespace/name``), whatever made it; nothing is connected to.

    Raises
    ------
    ClusterNotFound
        With the names that there are.
    """
    return loops.sync(loops.shared_loop(), _find, name, namespace)


# ---------------------------------------------------------------------------------- dask-ctl's functions, by its names


def list_clusters(discovery: str | None = None, namespace: str | None = None) -> list[FoundCluster]:
    """The clusters that exist, of all managers.

    Unlike dask-ctl's, these are not connected (which takes a port-forward each): `FoundCluster.connect` does that.

    Parameters
    ----------
    discovery
        Ask only this method, of those in `list_discovery_methods`.
    namespace
        Only the clusters of this namespace.

    Raises
    ------
    DaskfleetError
        If nothing was found and a method failed.
    """
    findings = loops.sync(loops.shared_loop(), discover, discovery, namespace)
    if findings.problems and not findings.clusters:
        raise DaskfleetError("; ".join(f"{method}: {said}" for method, said in findings.problems.items()))
    return findings.clusters


def get_cluster(name: str, **options: Any) -> Any:
    """The cluster manager of the cluster called `name`, connected. Closing it leaves the cluster running."""
    return find_cluster(name).connect(**options)


def scale_cluster(name: str, n_workers: int, worker_group: str = "default") -> None:
    """Ask for `n_workers` in the cluster called `name`."""
    find_cluster(name).scale(n_workers, worker_group)


def adapt_cluster(name: str, minimum: int = 0, maximum: int | float = 10, *, enabled: bool = True) -> Any:
    """Let the load decide how many workers the cluster called `name` has; see `FoundCluster.adapt`."""
    return find_cluster(name).adapt(minimum, maximum, enabled=enabled)


def delete_cluster(name: str) -> None:
    """End the cluster called `name`."""
    find_cluster(name).delete()


def get_snippet(name: str) -> str:
    """Python code that connects to the cluster called `name`."""
    found = find_cluster(name)
    module, manager = found.manager.__module__, found.manager.__qualname__
    return (
        f"from {module} import {manager}\n\n"
        f"cluster = {manager}.from_name({found.name!r})\nclient = cluster.get_client()\n"
    )


def create_cluster(spec_path: str | Path, namespace: str | None = None) -> Any:
    """Make the cluster that a YAML file describes, and leave it running when the result is closed.

    Parameters
    ----------
    spec_path
        A DaskCluster manifest, with worker groups and an autoscaler of it as further documents if there are any; or
        dask-ctl's ``{version: 1, module: …, class: …, args: […], kwargs: {…}}``.
    namespace
        Instead of the one that the file or the kubeconfig names.

    Returns
    -------
    Cluster
        Its manager, connected.

    Raises
    ------
    ValueError
        If the file describes no cluster.
    DaskfleetError
        If the cluster does not start. What was made of it is taken away.
    """
    documents = load_documents(spec_path)
    if "apiVersion" in documents[0]:
        from daskfleet.deploy.kubernetes.manifests import create

        return create(documents, namespace)
    return _from_class(documents[0], spec_path, namespace)


def load_documents(path: str | Path) -> list[dict[str, Any]]:
    """The YAML documents of a file. Raises ValueError when that is not what it holds."""
    try:
        import yaml
    except ImportError:
        raise ImportError('YAML files need: pip install "daskfleet[kubernetes]"') from None
    try:
        documents = [document for document in yaml.safe_load_all(Path(path).read_text()) if document is not None]
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise ValueError(
            f"{path} describes no cluster: a DaskCluster manifest or module, class and kwargs are expected"
        )
    return documents


def _from_class(document: dict[str, Any], path: str | Path, namespace: str | None) -> Any:
    try:
        manager = getattr(importlib.import_module(document["module"]), document["class"])
    except (KeyError, ImportError, AttributeError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: {said}; expected version: 1, module, class, args and kwargs") from None
    options = {key.replace("-", "_"): value for key, value in (document.get("kwargs") or {}).items()}
    known = inspect.signature(manager).parameters
    if "shutdown_on_close" in known:
        options.setdefault("shutdown_on_close", False)
    if namespace is not None:
        if "namespace" not in known:
            raise ValueError(f"a {document['class']} is in no namespace, so not in {namespace!r}")
        options["namespace"] = namespace
    return manager(*(document.get("args") or []), **options)
