"""Extending the cluster: plugins and files for its processes, and starting these anew."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

from daskfleet.client.logs import ForwardLogging, handle_record, topic_of
from daskfleet.client.options import worker_names
from daskfleet.client.running import Running
from daskfleet.client.sharing import Sharing
from daskfleet.client.times import seconds
from daskfleet.exceptions import DaskfleetError
from daskfleet.plugins import UploadFile, WorkerPlugin, kind_of, plugin_name
from daskfleet.protocol.serialize import dumps_by_value


class _Setup(WorkerPlugin):
    """A function as a plugin."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.injects = "dask_worker" in inspect.signature(function).parameters

    def setup(self, worker: Any) -> Any:
        return self.function(dask_worker=worker) if self.injects else self.function()


class Extending(Running, Sharing):
    """Plugins, files, restarts."""

    def register_plugin(self, plugin: Any, name: str | None = None, idempotent: bool | None = None) -> Any:
        """Run a plugin in the scheduler, in every worker or beside it, whichever it is written for.

        Parameters
        ----------
        plugin
            A `SchedulerPlugin`, `WorkerPlugin` or `NannyPlugin`.
        name
            Replaces a plugin registered under this name; by default the plugin's own.
        idempotent
            Do nothing if there is one of that name; by default the plugin's own attribute.

        Returns
        -------
        dict
            ``{worker: {"status": "OK"}}``; None for a `SchedulerPlugin`.

        Raises
        ------
        DaskfleetError
            It failed on workers; the message has each one's error. (distributed raises the first of these errors.)
        """
        return self._sync(self._register, plugin, name, idempotent)

    async def _register(self, plugin: Any, name: str | None = None, idempotent: bool | None = None) -> Any:
        kind = kind_of(plugin)
        if idempotent is None:
            idempotent = bool(getattr(plugin, "idempotent", False))
        name = name or plugin_name(plugin)
        done = _done(await self._call("plugin_register", kind, name, dumps_by_value(plugin), idempotent))
        if getattr(plugin, "restart_workers", False):
            await self._restart_workers(None, None, True)
        return None if kind == "scheduler" else done

    def unregister_worker_plugin(self, name: str, nanny: bool | None = None) -> Any:
        """Tear down a worker plugin, or with `nanny` a nanny plugin, everywhere.

        Raises
        ------
        ValueError
            There is none of that name; the message says which there are.
        """
        return self._sync(self._unregister, "nanny" if nanny else "worker", name)

    def unregister_scheduler_plugin(self, name: str) -> Any:
        """Close a scheduler plugin, which distributed leaves open; raises as `unregister_worker_plugin` does."""
        return self._sync(self._unregister, "scheduler", name)

    async def _unregister(self, kind: str, name: str) -> Any:
        done = _done(await self._call("plugin_unregister", kind, name))
        return None if kind == "scheduler" else done

    def register_worker_callbacks(self, setup: Callable[..., Any]) -> Any:
        """Call a function on every worker, those that join later too; a parameter ``dask_worker`` is given it."""
        return self._sync(self._register, _Setup(setup), f"setup-{dumps_by_value(setup).hex()[-32:]}", None)

    def upload_file(self, filename: str | os.PathLike[str], load: bool = True) -> Any:
        """Give every worker, those that join later too, a file; see `UploadFile`."""
        return self._sync(self._register, UploadFile(filename, load))

    # Restarting ----------------------------------------------------------------------------------------------------

    def restart(self, timeout: float | str | None = None, wait_for_workers: bool = True) -> Any:
        """Start over: cancel every task of every client, drop all data and start the workers anew.

        Workers without a nanny (``processes=False``) keep their process and drop what they hold.

        Parameters
        ----------
        timeout
            Seconds (or a text) to wait for the workers, 120 by default.

        Raises
        ------
        TimeoutError
            With `wait_for_workers`: some were not back in time; the message names them.
        """
        return self._sync(self._restart, seconds(timeout), wait_for_workers)

    async def _restart(self, timeout: float | None, wait: bool) -> Any:
        await self._call("restart")
        outcome = await self._restart_workers(None, timeout, wait)
        late = [name for name, result in outcome.items() if result != "OK"]
        if wait and late:
            raise TimeoutError(f"{len(late)} workers have not come back: {', '.join(late)}")
        return self

    def restart_workers(
        self, workers: Iterable[str], timeout: float | str | None = None, raise_for_error: bool = True
    ) -> Any:
        """Start workers anew; the others compute again what is needed of their data.

        Workers without a nanny (``processes=False``), which distributed refuses, drop what they hold as in `restart`.

        Parameters
        ----------
        workers
            Their names or addresses.
        timeout
            Seconds (or a text) to wait for them, 120 by default.
        raise_for_error
            Raise when one is not back in time, instead of saying so in what is returned.

        Returns
        -------
        dict
            ``"OK"`` or ``"timed out"`` by what they were named.

        Raises
        ------
        TimeoutError
            With `raise_for_error`, when one was not back in time.
        ValueError
            One is not there; the message says which there are. The others go on as they are.
        """
        return self._sync(self._restart_some, worker_names(workers) or [], seconds(timeout), raise_for_error)

    async def _restart_some(self, names: list[str], timeout: float | None, raise_for_error: bool) -> dict[str, str]:
        if not names:
            return {}
        outcome = await self._restart_workers(names, timeout, True)
        late = [name for name, result in outcome.items() if result != "OK"]
        if raise_for_error and late:
            raise TimeoutError(f"{len(late)} workers have not come back: {', '.join(late)}")
        return outcome

    async def _restart_workers(self, names: list[str] | None, timeout: float | None, wait: bool) -> dict[str, str]:
        limit = 120.0 if timeout is None else timeout
        return dict(await self._call("restart_workers", names, limit if wait else 0.0))

    # Logging -------------------------------------------------------------------------------------------------------

    def forward_logging(self, logger_name: str | None = None, level: int | str = logging.INFO) -> Any:
        """Handle here what the workers log.

        Records of the loggers named so, or below, reach the logger of the same name in this process.

        Parameters
        ----------
        logger_name
            The root logger by default.
        level
            What is below stays on the workers.
        """
        self.subscribe_topic(topic_of(logger_name), handle_record)
        return self._sync(self._register, ForwardLogging(logger_name, level))

    def unforward_logging(self, logger_name: str | None = None) -> Any:
        """Undo `forward_logging`."""
        self.unsubscribe_topic(topic_of(logger_name))
        return self._sync(self._unregister, "worker", topic_of(logger_name))


def _done(rows: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    rows = list(rows)
    failed = [f"{address}: {error}" for address, error in rows if error]
    if failed:
        raise DaskfleetError(f"the plugin failed on {len(failed)} workers: " + "; ".join(failed))
    return {address: {"status": "OK"} for address, _ in rows}
