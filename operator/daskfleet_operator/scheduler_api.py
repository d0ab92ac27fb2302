"""The HTTP API of a Dask scheduler, whichever engine runs in it.

The bundled runtime and upstream's distributed answer the same routes; where ours knows more (`workers_to_close`, names
in `retire_workers`), a 404 or the plain form is the way for the other. Inside the cluster the Service is reached by its
IP: no DNS lookup, and no assumption about the cluster's domain. From outside (an operator run at a desk) the API
server's proxy is used; it takes `Authorization` for itself, so the scheduler's token goes under a name of our own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import aiohttp

from daskfleet_operator.kube.kinds import Json
from daskfleet_operator.kube.objects import Pod


class SchedulerError(Exception):
    """The scheduler did not answer, or not with what was asked for."""


class SchedulerApi:
    """One scheduler.

    Parameters
    ----------
    session
        Shared by all schedulers.
    base
        URL without a trailing slash, such as ``http://10.0.0.7:8787``.
    headers
        Authorization, where the scheduler has a token.
    """

    def __init__(self, session: aiohttp.ClientSession, base: str, headers: dict[str, str]) -> None:
        self._session = session
        self._base = base
        self._headers = headers

    async def healthy(self) -> bool:
        """Whether it answers at all."""
        try:
            async with self._session.get(f"{self._base}/health", timeout=aiohttp.ClientTimeout(total=2)) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def takes_token(self) -> bool | None:
        """Whether it takes the token; None without an answer. An engine that knows no tokens takes any.

        What needs the token is asked for without saying what it is to do, so that nothing is done.
        """
        url, limit = f"{self._base}/api/v1/retire_workers", aiohttp.ClientTimeout(total=5)
        try:
            async with self._session.post(url, headers=self._headers, timeout=limit) as response:
                return None if response.status in (502, 503, 504) else response.status != 401
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def adaptive_target(self, duration: str) -> int:
        """How many workers the work at hand keeps busy for `duration`, such as ``5s``."""
        answer = await self._call("GET", "adaptive_target", params={"target_duration": duration})
        return int(answer["workers"])

    async def idle_since(self) -> float | None:
        """Since when nothing is to do, in seconds since the epoch; None while there is."""
        since = (await self._call("GET", "check_idle"))["idle_since"]
        return None if not since else float(since)

    async def workers_to_close(self, count: int, pods: Sequence[Pod]) -> list[Pod]:
        """Which `count` of these pods are cheapest to end. Only the bundled runtime knows; else `SchedulerError`."""
        params = {"n": str(count), "workers": ",".join(pod.name for pod in pods)}
        answer = await self._call("GET", "workers_to_close", params=params, seconds=3)
        return pods_of(answer["workers"], pods)

    async def retire(self, pods: Sequence[Pod], heirs: Sequence[Pod], seconds: float) -> None:
        """Move the data of these pods' workers elsewhere and give them no more tasks. Unknown ones are gone already.

        With `heirs`, one of them has to have joined: a pod is ready before its worker is, and a scheduler that knows of
        nobody else has nowhere to move data. Addresses are sent, which both engines take: names reach upstream's route
        as if they were addresses.
        """
        workers = (await self._call("GET", "get_workers"))["workers"]
        pod_of = finder(pods)
        addresses = [worker["address"] for worker in workers if pod_of(worker) is not None]
        if addresses and heirs and not pods_of(workers, heirs):
            raise SchedulerError("none of the workers that stay has joined yet")
        if addresses:
            await self._call("POST", "retire_workers", body={"workers": addresses}, seconds=seconds)

    async def _call(
        self,
        method: str,
        route: str,
        *,
        params: dict[str, str] | None = None,
        body: Json | None = None,
        seconds: float = 5,
    ) -> Json:
        url = f"{self._base}/api/v1/{route}"
        try:
            async with asyncio.timeout(seconds):
                async with self._session.request(
                    method, url, params=params, json=body, headers=self._headers
                ) as response:
                    if response.status >= 400:
                        raise SchedulerError(f"{route} was answered with {response.status}")
                    answer: Json = await response.json(content_type=None)
                    if not isinstance(answer, dict):
                        raise SchedulerError(f"{route} was answered with {type(answer).__name__}, not an object")
                    return answer
        except TimeoutError as error:
            raise SchedulerError(f"{route} was not answered within {seconds:.0f} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise SchedulerError(f"{route}: {error or type(error).__name__}") from error


def pods_of(workers: Sequence[Json], pods: Sequence[Pod]) -> list[Pod]:
    """The pods these workers run in: by IP, since users may name workers as they like; a pod may run several."""
    found = filter(None, map(finder(pods), workers))
    return list({pod.uid: pod for pod in found}.values())


def finder(pods: Sequence[Pod]) -> Callable[[Json], Pod | None]:
    """What tells the pod, of these, that a worker runs in."""
    by_ip = {pod.ip: pod for pod in pods if pod.ip}
    by_name = {pod.name: pod for pod in pods}

    def find(worker: Json) -> Pod | None:
        host = urlsplit(str(worker["address"])).hostname
        return by_ip.get(host or "") or by_name.get(str(worker["name"]))

    return find
