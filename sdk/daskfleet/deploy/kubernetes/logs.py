"""What a cluster's pods have logged: read once, or followed.

Following survives what ends a stream: the API server closes each after a while, connections break, containers are
started again. Lines carry the time at which the node took them, so a stream is opened again where it ended, and what
comes twice is dropped. Pods that come later are followed as well, and the end is when the cluster is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from daskfleet.deploy.cluster import Log, Logs
from daskfleet.deploy.kubernetes.api import Api, resource_path
from daskfleet.deploy.kubernetes.errors import ApiError, InvalidManifest
from daskfleet.deploy.kubernetes.fixed import OURS, Layout
from daskfleet.deploy.kubernetes.lifecycle import LEAVING, list_clusters

#: Seconds until a stream that ended is opened again, doubled each time that nothing came, up to the last.
PAUSE = (0.2, 5.0)
DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


def _selector(cluster: str, layout: Layout, scheduler: bool, workers: bool) -> str:
    wanted = [component for component, yes in (("scheduler", scheduler), ("worker", workers)) if yes]
    return f"{layout.selector(cluster)},{layout.component_label} in ({','.join(wanted)})"


def _container(pod: Mapping[str, Any]) -> str:
    """The container that counts, where there are several: the one that kubectl takes."""
    chosen = (pod["metadata"].get("annotations") or {}).get(DEFAULT_CONTAINER)
    return str(chosen or pod["spec"]["containers"][0]["name"])


async def read_logs(
    api: Api,
    namespace: str,
    cluster: str,
    *,
    scheduler: bool = True,
    workers: bool = True,
    lines: int | None = None,
    layout: Layout = OURS,
) -> Logs:
    """The logs of a cluster's pods, the scheduler's first.

    Parameters
    ----------
    lines
        Only so many of each pod's last lines.
    layout
        How the cluster's pods are labelled.
    """
    if not scheduler and not workers:
        return Logs()
    selector, label = _selector(cluster, layout, scheduler, workers), layout.component_label
    listing = await api.get(resource_path("pods", namespace), labelSelector=selector)
    pods = sorted(listing["items"], key=lambda pod: (pod["metadata"]["labels"][label], pod["metadata"]["name"]))

    async def read(pod: Mapping[str, Any]) -> Log:
        path = resource_path("pods", namespace, pod["metadata"]["name"], "log")
        try:
            return Log(await api.text(path, tailLines=lines, container=_container(pod)))
        except InvalidManifest as error:  # the container has not started
            return Log(error.message)
        except ApiError as error:
            if error.status != 404:  # it ended meanwhile
                raise
            return Log("")

    names = [pod["metadata"]["name"] for pod in pods]
    return Logs(zip(names, await asyncio.gather(*map(read, pods)), strict=True))


async def follow_logs(
    api: Api,
    namespace: str,
    cluster: str,
    *,
    scheduler: bool = True,
    workers: bool = True,
    lines: int | None = None,
    layout: Layout = OURS,
) -> AsyncGenerator[tuple[str, str]]:
    """Pairs of a pod's name and a line of its log, as they come, until the cluster is gone.

    Parameters
    ----------
    lines
        Begin with so many of the last lines of each pod that is there; with all by default.
    """
    if not scheduler and not workers:
        return
    following = _Following(api, namespace, cluster, lines)
    watching = asyncio.ensure_future(following.watch(_selector(cluster, layout, scheduler, workers)))
    ending = asyncio.ensure_future(following.end())
    try:
        while (item := await following.said.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        for task in (watching, ending, *following.tasks.values()):
            task.cancel()


class _Following:
    """A task for each pod of a cluster, all of which put into one queue: lines, what went wrong, or None at the end."""

    def __init__(self, api: Api, namespace: str, cluster: str, lines: int | None) -> None:
        self._api, self._namespace, self._cluster, self._lines = api, namespace, cluster, lines
        self._pods = resource_path("pods", namespace)
        self._empty = asyncio.Event()  # no pod is there
        self.said: asyncio.Queue[tuple[str, str] | Exception | None] = asyncio.Queue(1000)
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def watch(self, selector: str) -> None:
        """Follow the pods that there are and those that come."""
        there: set[str] = set()
        try:
            async for event in self._api.watch(self._pods, labels=selector):
                name = event.object["metadata"]["name"] if event.object else ""
                if event.type == "DELETED":
                    there.discard(name)
                elif event.type != "SYNCED":
                    there.add(name)
                    if name not in self.tasks:
                        self.tasks[name] = asyncio.ensure_future(self._follow(event.object))
                (self._empty.clear if there else self._empty.set)()
        except Exception as error:  # whoever reads is to get it
            await self.said.put(error)

    async def end(self) -> None:
        """Say that it is over, once no pod is there and the cluster is gone, or going: its record may stay longer than
        its pods, and a cluster of none may go at any time."""
        pause = PAUSE[0]
        try:
            while True:
                waited = not self._empty.is_set()
                await self._empty.wait()
                if await self._gone() and self._empty.is_set():
                    break
                pause = PAUSE[0] if waited else min(2 * pause, PAUSE[1])
                await asyncio.sleep(pause)
            await asyncio.gather(*self.tasks.values())
            await self.said.put(None)
        except Exception as error:
            await self.said.put(error)

    async def _gone(self) -> bool:
        found = await list_clusters(self._api, self._namespace)
        return all(each.name != self._cluster or each.status == LEAVING for each in found)

    async def _follow(self, pod: Mapping[str, Any]) -> None:
        name = pod["metadata"]["name"]
        try:
            async for line in _follow_pod(self._api, f"{self._pods}/{name}/log", _container(pod), self._lines):
                await self.said.put((name, line))
        except Exception as error:
            await self.said.put(error)


def timed(entry: str) -> tuple[str, str]:
    """The time and the line of an entry of a log. No time has what the kubelet says for itself in the midst of one,
    such as that the container is gone; and who asks for lines since such a word is refused for ever."""
    time, _, line = entry.partition(" ")
    return (time, line) if time[:1].isdigit() else ("", entry)


async def _follow_pod(api: Api, path: str, container: str, lines: int | None) -> AsyncGenerator[str]:
    """The lines of one pod's log, until the pod is gone."""
    last, pause = "", PAUSE[0]
    while True:
        where = {"sinceTime": last} if last else {"tailLines": lines}
        since = last
        try:
            async for entry in api.lines(path, follow="true", timestamps="true", container=container, **where):
                time, line = timed(entry)
                if not time or (since and time <= since):
                    continue  # not the container's, or had before the stream was opened again
                last, since, pause = time, "", PAUSE[0]
                yield line
        except InvalidManifest:
            pass  # the container has not started yet
        except ApiError as error:
            if error.status != 404:
                raise
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, PAUSE[1])
