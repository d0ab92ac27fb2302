"""Worker pods as one watch shows them: when each was made, ran and went."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from daskfleet_operator.kube.client import Api
from daskfleet_operator.kube.kinds import POD

WORKERS = "dask.org/component=worker"


@dataclass
class Seen:
    """Seconds by `time.monotonic`."""

    made: float
    runs: float | None = None
    gone: float | None = None


class PodWatch:
    """The worker pods of a namespace; an async context manager. Each wait ends after `deadline` seconds."""

    def __init__(self, api: Api, namespace: str, deadline: float) -> None:
        self._api, self._namespace, self._deadline = api, namespace, deadline
        self.pods: dict[str, Seen] = {}
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            params = {"labelSelector": WORKERS}
            listed = await self._api.request("GET", POD.path(self._namespace), params=params, kind="pods")
            for item in listed["items"]:
                self._see("ADDED", item)
            for name in self.pods.keys() - {item["metadata"]["name"] for item in listed["items"]}:
                self.pods[name].gone = self.pods[name].gone or time.monotonic()
            await self._tell()
            params["resourceVersion"] = listed["metadata"]["resourceVersion"]
            async for event in self._api.watch(POD, self._namespace, params, timeout=3600, silence=3600):
                if event["type"] == "ERROR":  # the server has lost our place
                    break
                if event["type"] != "BOOKMARK":
                    self._see(event["type"], event["object"])
                    await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _see(self, what: str, pod: dict[str, Any]) -> None:
        now = time.monotonic()
        seen = self.pods.setdefault(pod["metadata"]["name"], Seen(now))
        if pod["status"].get("phase") == "Running":
            seen.runs = seen.runs or now
        if what == "DELETED":
            seen.gone = now

    def present(self) -> list[Seen]:
        return [seen for seen in self.pods.values() if seen.gone is None]

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Until an event makes `condition` true.

        Raises
        ------
        TimeoutError
            Before that, with what there is.
        """
        done = asyncio.create_task(self._until(condition))
        try:
            ended, _ = await asyncio.wait(
                {done, self._task}, timeout=self._deadline, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            done.cancel()
        if self._task in ended:
            self._task.result()
        if not ended:
            pods = self.present()
            running = sum(pod.runs is not None for pod in pods)
            raise TimeoutError(f"after {self._deadline:.0f} s there are {len(pods)} workers, {running} Running")

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)
