"""Looking at the cluster: who is there, who has what, who does what.

Some thirty methods of a few lines each, most of them docstring and one call: long, but with nothing to hold in mind.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from daskfleet.client.collections import Collections, keys_of
from daskfleet.client.memory import ActiveMemoryManagerProxy
from daskfleet.client.options import worker_names
from daskfleet.client.times import seconds
from daskfleet.dump import write_dump
from daskfleet.exceptions import DaskfleetError, VersionMismatch
from daskfleet.profiles import merge, tree
from daskfleet.versions import VersionMismatchWarning, mismatches, versions

if TYPE_CHECKING:
    from daskfleet.client.reports import ProfilePlot, TimelinePlot


class Looking(Collections):
    """Questions to the scheduler."""

    def retire_workers(
        self, workers: Iterable[str] | None = None, n: int | None = None, close_workers: bool = True
    ) -> Any:
        """End workers without losing what they hold: those named, the `n` cheapest to end, or all that have nothing to
        do.

        Returns
        -------
        dict
            What is known of each, by address.
        """
        return self._sync(self._call, "retire_workers", worker_names(workers), n, close_workers)

    def scheduler_info(self, n_workers: int = -1) -> Any:
        """The scheduler's identity and its workers (so many of them), as ``/json/identity.json`` has them."""
        return self._sync(self._scheduler_info, n_workers)

    async def _scheduler_info(self, n_workers: int) -> dict[str, Any]:
        info: dict[str, Any] = await self._call("identity")
        if n_workers >= 0:
            info["workers"] = dict(islice(info["workers"].items(), n_workers))
        return info

    def nthreads(self, workers: Iterable[str] | None = None) -> Any:
        """Threads of each worker, by address."""
        return self._sync(self._nthreads, worker_names(workers))

    ncores = nthreads

    async def _nthreads(self, names: list[str] | None) -> dict[str, int]:
        workers = (await self._call("identity"))["workers"].values()
        chosen = [
            worker for worker in workers if names is None or worker["address"] in names or worker["name"] in names
        ]
        return {worker["address"]: worker["nthreads"] for worker in chosen}

    def who_has(self, futures: Any = None) -> Any:
        """The addresses of the workers that hold each key; of keys that the scheduler does not know, nothing."""
        return self._sync(self._dict, "who_has", None if futures is None else keys_of(futures))

    def has_what(self, workers: Iterable[str] | None = None) -> Any:
        """The keys that each worker holds, by its address."""
        return self._sync(self._dict, "has_what", worker_names(workers))

    def processing(self, workers: Iterable[str] | None = None) -> Any:
        """The keys that each worker was sent and has not finished, by its address."""
        return self._sync(self._dict, "processing", worker_names(workers))

    async def _dict(self, method: str, argument: Any) -> dict[Any, tuple[Any, ...]]:
        return {name: tuple(items) for name, items in await self._call(method, argument)}

    def nbytes(self, keys: Any = None, summary: bool = True) -> Any:
        """Bytes of results in memory: by kind of task, or with ``summary=False`` by key."""
        return self._sync(self._pairs, "nbytes", None if keys is None else list(keys), summary)

    async def _pairs(self, method: str, *args: Any) -> dict[Any, Any]:
        return dict(await self._call(method, *args))

    @property
    def amm(self) -> ActiveMemoryManagerProxy:
        """The active memory manager: ``client.amm.start()``, ``stop()``, ``run_once()``, ``running()``."""
        return ActiveMemoryManagerProxy(self)

    # Moving --------------------------------------------------------------------------------------------------------

    def replicate(
        self,
        futures: Any,
        n: int | None = None,
        workers: Iterable[str] | None = None,
        branching_factor: int = 2,
    ) -> Any:
        """Have several workers hold the same results, and wait until they do.

        The copies stay: unlike distributed's, the active memory manager (`amm`) does not take them for surplus; those
        beyond a smaller `n` it lets go of when it runs next.

        Parameters
        ----------
        n
            How many workers; by default all, or all of `workers`.
        branching_factor
            How many copies are taken from one at a time.
        """
        return self._sync(self._replicate, futures, n, worker_names(workers), branching_factor)

    async def _replicate(self, futures: Any, n: int | None, workers: list[str] | None, branching_factor: int) -> None:
        own = self.futures_of(futures)
        await self._settled([future._state for future in own], None)
        await self._call("replicate", [future.key for future in own], n, workers, branching_factor)

    def rebalance(self, futures: Any = None, workers: Iterable[str] | None = None) -> Any:
        """Move results from the workers that hold most to those that hold least, and wait until they are there.

        Parameters
        ----------
        futures
            Move only these; by default any that a single worker holds.
        """
        return self._sync(self._rebalance, futures, worker_names(workers))

    async def _rebalance(self, futures: Any, workers: list[str] | None) -> None:
        keys = None
        if futures is not None:
            own = self.futures_of(futures)
            await self._settled([future._state for future in own], None)
            keys = [future.key for future in own]
        await self._call("rebalance", keys, workers)

    # Asking the workers --------------------------------------------------------------------------------------------

    def call_stack(self, futures: Any = None, keys: Iterable[Any] | None = None) -> Any:
        """What running tasks are at: ``{worker: {key: [call, …]}}``, the outermost call first; of workers that run one.

        Parameters
        ----------
        futures, keys
            Only these; by default all that run now.
        """
        chosen = None if futures is None and keys is None else [*(keys or ()), *(keys_of(futures) if futures else ())]
        return self._sync(self._call_stack, chosen)

    async def _call_stack(self, keys: list[Any] | None) -> dict[str, dict[Any, tuple[str, ...]]]:
        rows = await self._call("ask_workers", None, "call_stack", keys)
        return {address: {key: tuple(calls) for key, calls in stacks} for address, stacks in rows if stacks}

    def profile(
        self,
        key: str | None = None,
        start: float | None = None,
        stop: float | None = None,
        workers: Iterable[str] | None = None,
        merge_workers: bool = True,
        plot: bool | str = False,
        filename: str | None = None,
        server: bool = False,
        scheduler: bool = False,
    ) -> Any:
        """Where tasks have spent their time, by samples of their threads' stacks.

        Parameters
        ----------
        key
            A kind of task, such as ``"inc"``; all by default.
        start, stop
            Seconds since the epoch, to within ten seconds; the last hour by default.
        merge_workers
            False for a profile of each worker, by its address.
        plot
            Return a figure, too; ``"save"`` writes it to ``dask-profile.html`` unless there is a filename.
        filename
            Write the figure there.
        server, scheduler
            The time of the workers' own threads instead, or of the scheduler's, while those have something to do; `key`
            says nothing then. Sampling of these begins when it is first asked for, and ends an hour after it was last.

        Returns
        -------
        dict
            ``{"count", "identifier", "description", "children": {identifier: …}}``: samples, and the calls below.
        tuple
            With `plot` or `filename`: that and the figure, a page of nested bars which notebooks show and which has
            ``save(filename)``. In difference from distributed it is none of bokeh's, and needs none.
        """
        where = filename or ("dask-profile.html" if plot == "save" else None)
        arguments = (merge_workers or scheduler, key, start, stop, worker_names(workers), server, scheduler)
        if not plot and where is None:
            return self._sync(self._profile, *arguments)
        return self._sync(self._plotted_profile, where, *arguments)

    async def _profile(
        self,
        merged: bool,
        key: str | None,
        start: float | None,
        stop: float | None,
        workers: list[str] | None,
        server: bool = False,
        scheduler: bool = False,
    ) -> Any:
        if scheduler:
            return await self._call("profile", start, stop)
        rows = await self._call("ask_workers", workers, "profile", key, start, stop, server)
        return _sum(profile for _, profile in rows) if merged else dict(rows)

    async def _plotted_profile(self, filename: str | None, merged: bool, *arguments: Any) -> tuple[Any, ProfilePlot]:
        from daskfleet.client.reports import ProfilePlot

        found = await self._profile(merged, *arguments)
        plot = ProfilePlot(found if merged else _sum(found.values()))
        if filename is not None:
            await asyncio.to_thread(plot.save, filename)
        return found, plot

    def get_worker_logs(self, n: int | None = None, workers: Iterable[str] | None = None, nanny: bool = False) -> Any:
        """The last log lines of each worker (the last `n`), as ``(level, line)``, by its address; oldest first.

        With `nanny` those of its nanny, where it has one. Nannies of one machine may share a process, and its lines.
        """
        return self._sync(self._worker_logs, n, worker_names(workers), nanny)

    async def _worker_logs(
        self, n: int | None, workers: list[str] | None, nanny: bool
    ) -> dict[str, tuple[tuple[str, str], ...]]:
        rows = await self._call("ask_workers", workers, "logs", nanny)
        return {address: _levels(lines, n) for address, lines in rows if lines is not None}

    def get_scheduler_logs(self, n: int | None = None) -> Any:
        """The scheduler's last log lines (the last `n`), as ``(level, line)``; oldest first."""
        return self._sync(self._scheduler_logs, n)

    async def _scheduler_logs(self, n: int | None) -> tuple[tuple[str, str], ...]:
        return _levels(await self._call("logs"), n)

    def get_versions(self, check: bool = False, packages: Iterable[str] | None = None) -> Any:
        """Versions of Python and of what matters between client, scheduler and workers.

        Parameters
        ----------
        check
            Raise if they differ.
        packages
            Further packages to look at.

        Returns
        -------
        dict
            ``{"client": {"host": {"python": version}, "packages": {package: version}}, "scheduler": …, "workers":
            {address: …}}``; None for what is not installed.

        Raises
        ------
        VersionMismatch
            With a table of what differs.
        """
        return self._sync(self._sorted_versions, check, tuple(packages or ()))

    async def _sorted_versions(self, check: bool, packages: tuple[str, ...]) -> dict[str, Any]:
        found = await self._versions(check, packages)

        def sort(versions: dict[str, Any]) -> dict[str, Any]:
            return {"host": {"python": versions["python"]}, "packages": versions}

        workers = {address: sort(versions) for address, versions in found["workers"].items()}
        return {"client": sort(found["client"]), "scheduler": sort(found["scheduler"]), "workers": workers}

    async def _check_versions(self) -> None:
        try:
            await self._versions(True)
        except VersionMismatch as error:
            warnings.warn(str(error), VersionMismatchWarning, stacklevel=1)
        except (OSError, TimeoutError, DaskfleetError, ValueError):
            return  # the connection has ended meanwhile, or the scheduler is too old to be asked

    async def _versions(self, check: bool, packages: tuple[str, ...] = ()) -> dict[str, Any]:
        more = (packages,) if packages else ()  # what older ones do not know
        scheduler, workers = await asyncio.gather(
            self._call("versions", *more), self._call("ask_workers", None, "versions", *more)
        )
        names = frozenset(name for _, told in workers for name in told)
        own = await asyncio.to_thread(versions, names - {"python"})
        found = {"client": own, "scheduler": scheduler, "workers": dict(workers)}
        table = mismatches(found["client"], scheduler, found["workers"])
        if check and table:
            raise VersionMismatch(f"client, scheduler and workers have different versions:\n{table}")
        return found

    def dump_cluster_state(
        self,
        filename: str = "dask-cluster-dump",
        write_from_scheduler: bool | None = None,
        exclude: Iterable[str] = (),
        format: str = "msgpack",
        **storage_options: Any,
    ) -> Any:
        """Write all that scheduler and workers know to a file, for looking into what went wrong.

        Parameters
        ----------
        filename
            Without the ending: a path, or a URL that fsspec can write to.
        write_from_scheduler
            Write it where the scheduler runs, and not here; by default for a URL.
        exclude
            Names to leave out, of ``scheduler``, ``workers`` and ``versions`` and of what is said of each of these.
        format
            ``"msgpack"`` writes ``.msgpack.gz``, ``"yaml"`` writes ``.yaml``.
        storage_options
            For fsspec, with a URL.

        Returns
        -------
        str
            The file's name.
        """
        if format not in ("msgpack", "yaml"):
            raise ValueError(f"format={format!r}: expected msgpack or yaml")
        there = "://" in filename if write_from_scheduler is None else write_from_scheduler
        return self._sync(self._dump, filename, list(exclude), format, storage_options, there)

    async def _dump(
        self, filename: str, exclude: list[str], format: str, storage_options: dict[str, Any], there: bool
    ) -> str:
        file = (filename, format, storage_options)
        found = await self._call("dump", await self._versions(False), exclude, file if there else None)
        return found if there else await asyncio.to_thread(write_dump, filename, format, found, storage_options)

    def story(self, *keys: Any, on_error: str = "raise") -> Any:
        """How tasks have changed their states on the scheduler; of these keys or futures, or of all.

        In difference from distributed, recording begins when a client asks first: nobody else pays for it. Workers are
        not asked, so there are none whose failing to answer `on_error` could ignore; it is taken for compatibility.

        Returns
        -------
        list of tuple
            ``(key, state before, state after, seconds since the epoch)``, oldest first.
        """
        return self._sync(self._story, [getattr(key, "key", key) for key in keys])

    async def _story(self, keys: list[Any]) -> list[tuple[Any, ...]]:
        return [tuple(record) for record in await self._call("story", keys)]

    def write_scheduler_file(self, scheduler_file: str) -> Any:
        """Write a file by which workers and other clients find this client's scheduler; it holds the token too."""
        return self._sync(self._write_scheduler_file, scheduler_file)

    async def _write_scheduler_file(self, path: str) -> None:
        from daskfleet.scheduler_file import write

        assert self.security is not None
        identity = {**await self._call("identity"), "address": self.scheduler_address}
        await asyncio.to_thread(write, path, identity, self.security)

    def get_task_stream(
        self,
        start: float | str | None = None,
        stop: float | str | None = None,
        count: int | None = None,
        plot: bool | str = False,
        filename: str | None = None,
        bokeh_resources: Any = None,
    ) -> Any:
        """Which tasks have ended between two times, when and where; the last `count`.

        Recording begins when a client asks first; see also the context manager `get_task_stream`.

        Parameters
        ----------
        start, stop
            Seconds since the epoch, or texts such as ``"5 minutes"`` for as long ago.
        plot, filename
            Write a timeline (HTML), too, as the context manager does, and return it with the records.
        bokeh_resources
            Taken for compatibility: the timeline needs none.

        Returns
        -------
        tuple of dict
            ``key name worker start stop status nbytes type error`` of each. (distributed has a list ``startstops`` in
            place of the times, of which here is one pair: moving data is not among them.)
        """
        where = filename or ("task-stream.html" if plot else None)
        since, until = (time.time() - (seconds(at) or 0) if isinstance(at, str) else at for at in (start, stop))
        if where is None:
            return self._sync(self._task_stream, since, until, count)
        return self._sync(self._plotted_task_stream, where, since, until, count)

    async def _plotted_task_stream(self, filename: str, *arguments: Any) -> tuple[Any, TimelinePlot]:
        from daskfleet.client.reports import TimelinePlot

        records = await self._task_stream(*arguments)
        plot = TimelinePlot(list(records))
        await asyncio.to_thread(plot.save, filename)
        return records, plot

    async def _task_stream(self, start: float | None, stop: float | None, count: int | None) -> tuple[Any, ...]:
        return tuple(await self._call("watched", start, stop, count))


def _sum(profiles: Iterable[dict[str, Any]]) -> dict[str, Any]:
    total = tree()
    for profile in profiles:
        merge(total, profile)
    return total


def _levels(lines: Iterable[str], n: int | None) -> tuple[tuple[str, str], ...]:
    rows = []
    for line in lines:
        parts = line.split("  ", 2)
        rows.append((parts[1].strip() if len(parts) == 3 else "", line))
    return tuple(rows if n is None else rows[-n:] if n else ())
