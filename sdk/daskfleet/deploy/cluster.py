"""What every cluster manager shares: `Cluster`.

A manager writes four coroutines, `_start`, `_stop`, `_scale` and `_get_logs`, and sets `scheduler_address` and
`http_address` once the scheduler answers. All else (blocking methods, context managers, awaiting, waiting for workers,
repr, closing when the object is dropped or the interpreter ends) is here, once. Coroutines have a leading underscore;
the public method of the same name runs them on the loop (`daskfleet.loop`) and waits, or returns the awaitable when the
cluster is asynchronous.

Nothing on the loop may hold a strong reference to the `Cluster` while it is idle, or it would never be collected:
managers give their background tasks the parts that these need.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401  before `_close_all` is registered: exit handlers run last in, first out
import contextlib
import html
import json
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlencode

import dask  # noqa: F401  not in a constructor: an ImportError it keeps would keep that frame, and so the cluster, alive

from daskfleet import config
from daskfleet import loop as loops
from daskfleet.deploy.status import Status

if TYPE_CHECKING:
    from daskfleet.client.client import Client
    from daskfleet.deploy.adaptive import Adaptive
    from daskfleet.security import Security

T = TypeVar("T")

logger = logging.getLogger(__name__)

_open: weakref.WeakSet[Cluster] = weakref.WeakSet()


class Log(str):
    """The log of one process: a string that shows as one."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre><code>{html.escape(self)}</code></pre>"


class Logs(dict[str, Log]):
    """Logs by the name of the process."""

    def __repr__(self) -> str:
        return "\n\n".join(f"==> {name} <==\n{log}" for name, log in self.items())

    def _repr_html_(self) -> str:
        return "\n".join(
            f"<details><summary>{html.escape(name)}</summary>{log._repr_html_()}</details>"
            for name, log in self.items()
        )


class Cluster:
    """A scheduler and workers that can be scaled, from Python.

    Parameters
    ----------
    name
        What the cluster is called.
    asynchronous
        Methods return awaitables, and the object itself is to be awaited (or entered by ``async with``) to start.
    loop
        The event loop to use, asyncio's or tornado's; by default the running one when `asynchronous`, else the
        background loop that all blocking objects of daskfleet share.
    security
        The token and certificates with which clients connect.
    quiet
        Show no progress.

    Attributes
    ----------
    name, scheduler_address, status, security, loop, quiet
        As told above; `scheduler_address` is ``""`` until the cluster runs.
    http_address
        Base URL of the scheduler's HTTP server, ``""`` if it has none.
    direct_to_workers
        Whether clients in this process can reach the workers' addresses; None where they have to find out.
    """

    def __init__(
        self,
        *,
        name: str,
        asynchronous: bool = False,
        loop: Any = None,
        security: Security | None = None,
        quiet: bool = False,
    ) -> None:
        self.name = name
        self.security = security
        self.quiet = quiet
        self.scheduler_address = ""
        self.http_address = ""
        self.direct_to_workers: bool | None = None
        self.status = Status.created
        self._asynchronous = asynchronous
        self._loop: asyncio.AbstractEventLoop | None = getattr(loop, "asyncio_loop", loop)
        self._life = asyncio.Lock()
        self._info: dict[str, Any] = {"type": "Scheduler", "address": "", "services": {}, "workers": {}}
        self._adaptive: Adaptive | None = None

    # ------------------------------------------------------------------------------------- for managers to write

    async def _start(self) -> None:
        """Bring up the scheduler and ask for workers. A failure is followed by `_stop`."""
        raise NotImplementedError

    async def _stop(self) -> None:
        """Take down what `_start` made, however far it came."""
        raise NotImplementedError

    async def _scale(self, n: int) -> None:
        """Ask for `n` workers in all; return without waiting for them."""
        raise NotImplementedError

    async def _get_logs(self, cluster: bool = True, scheduler: bool = True, workers: bool = True) -> Logs:
        raise NotImplementedError

    async def _scale_down(self, names: list[str]) -> None:
        """Retire the workers of these names; by default, whichever the manager chooses."""
        await self._scale(max(0, len(self.observed) - len(names)))

    async def _adaptive_target(self, target_duration: float) -> int:
        """How many workers the scheduler could use to be done in `target_duration` seconds."""
        answer = await self._fetch("/api/v1/adaptive_target", target_duration=f"{target_duration}s")
        return int(answer["workers"])

    async def _workers_to_close(self, n: int) -> list[str]:
        """Names of the `n` workers that are cheapest to close."""
        answer = await self._fetch("/api/v1/workers_to_close", n=n)
        return [str(worker["name"]) for worker in answer["workers"]]

    async def _shortfall(self) -> str:
        """Why workers are missing, as far as the manager knows; raise if they are certain not to come."""
        return ""

    @property
    def requested(self) -> set[str]:
        """Names of the workers asked for: starting or running."""
        return self.observed

    @property
    def plan(self) -> set[str]:
        """Names of the workers that there are to be."""
        return self.requested

    # ---------------------------------------------------------------------------------------------- blocking or not

    @property
    def asynchronous(self) -> bool:
        """Whether methods return awaitables: asked for, or because the caller runs on the cluster's own loop."""
        return self._asynchronous or (self._loop is not None and loops.on_loop_thread(self._loop))

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop on which the cluster lives."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop() if self._asynchronous else loops.shared_loop()
        return self._loop

    def sync(self, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> Any:
        """Run a coroutine function on the cluster's loop: its result, or a task to await when asynchronous.

        A task and not a coroutine, so that it runs also where callers written for blocking clusters do not await it.
        """
        if self.asynchronous:
            return asyncio.ensure_future(function(*args, **kwargs))
        return loops.sync(self.loop, function, *args, **kwargs)

    # ------------------------------------------------------------------------------------------------------- life

    def __await__(self) -> Generator[Any, None, Self]:
        return self._ensure_started().__await__()

    async def _ensure_started(self) -> Self:
        _ = self.loop
        async with self._life:
            if self.status is Status.running:
                return self
            if self.status is not Status.created:
                raise RuntimeError(f"{self!r} is {self.status}: make a new one")
            self.status = Status.starting
            _open.add(self)
            try:
                await self._start()
            except BaseException:
                self.status = Status.failed
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    await asyncio.shield(self._stop())
                raise
            self.status = Status.running
        return self

    async def _settle(self, timeout: float) -> None:
        """Wait until nothing is being started or taken down."""
        async with asyncio.timeout(timeout), self._life:
            pass

    async def _close(self) -> None:
        async with self._life:
            if self.status not in (Status.running, Status.created):
                return
            started = self.status is Status.running
            self.status = Status.closing
            if self._adaptive is not None:
                self._adaptive.stop()
            try:
                if started:
                    await self._stop()
            finally:
                self.status = Status.closed

    def close(self, timeout: float | None = None) -> Any:
        """Close the cluster and give back what it holds. Idempotent.

        Parameters
        ----------
        timeout
            Seconds to wait at most; each manager has a deadline of its own besides.

        Raises
        ------
        TimeoutError
            If it took longer; closing goes on in the background.
        """

        async def close() -> None:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._close())

        return self.sync(close)

    def __enter__(self) -> Self:
        if self._asynchronous:
            raise TypeError("this cluster is asynchronous: use `async with`")
        self.sync(self._ensure_started)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await self._ensure_started()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    def __del__(self) -> None:
        # At the interpreter's end the names of this module are gone already, and `_close_all` has been here.
        if getattr(self, "status", "") == "running" and self._loop is not None and self._loop.is_running():
            loops.start_soon(self._loop, self._close())  # lives on until that is done

    # ----------------------------------------------------------------------------------------------------- workers

    def scale(self, n: int) -> Any:
        """Ask for `n` workers. Returns at once; see `wait_for_workers`."""
        return self.sync(self._scale, n)

    def adapt(self, minimum: int | None = None, maximum: float | None = None, **options: Any) -> Any:
        """Let the load decide the number of workers between `minimum` and `maximum`.

        What is not given is configured as ``distributed.adaptive.*``; `options` are further ones of `Adaptive`.

        Returns
        -------
        Adaptive
            What decides, with ``stop()``; calling `adapt` again replaces it.
        """
        return self._follow(None, minimum=minimum, maximum=maximum, **options)

    def _follow(self, adaptive: type[Adaptive] | None, **options: Any) -> Adaptive:
        """Follow the load with what is to decide, in place of what did."""
        from daskfleet.deploy.adaptive import Adaptive

        if self._adaptive is not None:
            self._adaptive.stop()
        self._adaptive = (adaptive or Adaptive)(self, **options)
        self._adaptive.start()
        return self._adaptive

    def wait_for_workers(self, n_workers: int = 1, timeout: float | None = None) -> Any:
        """Wait until the scheduler has at least `n_workers`.

        Parameters
        ----------
        n_workers
            How many.
        timeout
            Seconds to wait at most; forever by default.

        Raises
        ------
        TimeoutError
            With what the cluster says about the missing ones.
        """
        return self.sync(self._wait_for_workers, n_workers, timeout)

    async def _wait_for_workers(self, n_workers: int = 1, timeout: float | None = None) -> None:
        clock = self.loop.time
        deadline = None if timeout is None else clock() + timeout
        while True:
            with contextlib.suppress(OSError):  # a scheduler that restarts
                await self._refresh()
            have = len(self._info["workers"])
            if have >= n_workers:
                return
            why = await self._shortfall()
            if deadline is not None and clock() >= deadline:
                reason = f": {why}" if why else ""
                raise TimeoutError(f"{have} of {n_workers} workers after {timeout:g} s{reason}")
            await asyncio.sleep(0.03)

    @property
    def observed(self) -> set[str]:
        """Names of the workers that the scheduler had when it was last looked at."""
        return {str(worker.get("name", address)) for address, worker in self._info["workers"].items()}

    @property
    def scheduler_info(self) -> dict[str, Any]:
        """The scheduler's description of itself and of its workers (``identity.json``).

        An asynchronous cluster, whose properties cannot wait, gives what was last seen, and looks again afterwards.
        """
        if self.status is Status.running:
            if self.asynchronous:
                refresh = self.loop.create_task(self._refresh())
                refresh.add_done_callback(lambda task: task.cancelled() or task.exception())
            else:
                with contextlib.suppress(OSError):
                    loops.sync(self.loop, self._refresh)
        return self._info

    async def _refresh(self) -> None:
        info = await self._fetch("/json/identity.json")
        self._info = info if isinstance(info.get("workers"), dict) else {**info, "workers": {}}

    async def _fetch(self, path: str, **query: Any) -> Any:
        """GET JSON from the scheduler's HTTP server. Raises OSError when it does not answer."""
        from tornado.httpclient import AsyncHTTPClient, HTTPError

        url = self.http_address + path + ("?" + urlencode(query) if query else "")
        try:
            response = await AsyncHTTPClient().fetch(url, request_timeout=10)
        except HTTPError as error:
            raise OSError(f"GET {url}: {error}") from None
        return json.loads(response.body)

    # ------------------------------------------------------------------------------------------------------ looking

    def get_client(self) -> Client:
        """A `Client` of this cluster. Close it, or use it by ``with``; await it when the cluster is asynchronous."""
        from daskfleet.client.client import Client

        return Client(self, asynchronous=self._asynchronous, direct_to_workers=self.direct_to_workers)

    def get_logs(self, cluster: bool = True, scheduler: bool = True, workers: bool = True) -> Any:
        """The logs of the cluster manager, the scheduler and the workers.

        Returns
        -------
        Logs
            ``{name of the process: text}``.
        """
        return self.sync(self._get_logs, cluster, scheduler, workers)

    @property
    def dashboard_link(self) -> str:
        """URL of the scheduler's live page, ``""`` if there is none."""
        return config.dashboard_link(self.http_address) if self.http_address else ""

    def _summary(self) -> dict[str, Any]:
        workers = self._info["workers"].values()
        return {
            "workers": len(workers),
            "threads": sum(int(worker.get("nthreads") or 0) for worker in workers),
            "memory": _bytes(sum(int(worker.get("memory_limit") or 0) for worker in workers)),
        }

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value}" for name, value in self._summary().items())
        where = repr(self.scheduler_address) if self.status is Status.running else self.status
        return f"{type(self).__name__}({self.name}, {where}, {facts})"

    def _repr_html_(self) -> str:
        link = html.escape(self.dashboard_link)
        rows = {
            "Status": str(self.status),
            "Scheduler": self.scheduler_address,
            **{name.capitalize(): str(value) for name, value in self._summary().items()},
        }
        cells = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
        board = f'<tr><th>Dashboard</th><td><a href="{link}" target="_blank">{link}</a></td></tr>' if link else ""
        return f"<h4>{type(self).__name__} {html.escape(self.name)}</h4><table>{cells}{board}</table>"


def _bytes(n: int) -> str:
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _close_all() -> None:
    """Close what runs; let what is being taken down, after Ctrl-C say, come to its end."""
    for cluster in list(_open):
        if cluster._asynchronous or cluster.status in (Status.created, Status.closed):
            continue
        try:
            if cluster.status is Status.running:
                cluster.close(timeout=10)
            else:
                loops.sync(cluster.loop, cluster._settle, 10)
        except Exception as error:
            logger.warning("closing %s at exit: %s", cluster.name, error)


# Closing may start threads (asyncio looks names up in them), which is over by the time `atexit` runs.
getattr(threading, "_register_atexit", atexit.register)(_close_all)
