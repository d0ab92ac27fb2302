"""`Client`: what users call. Each subject has a file of its own; here they come together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from daskfleet import loop as loops
from daskfleet.client.executor import CompatibleExecutor
from daskfleet.client.extending import Extending
from daskfleet.client.looking import Looking
from daskfleet.client.sharing import BUILT_IN, EventHandler

if TYPE_CHECKING:
    from daskfleet.worker.server import Worker


class Client(Looking, Extending):
    """Submits work to a scheduler and gets the results.

    In difference from distributed, all but `address` is given by keyword.

    Parameters
    ----------
    address
        The scheduler's address, or a cluster object. Without one: the scheduler file's, else the configured
        ``scheduler-address`` (``DASK_SCHEDULER_ADDRESS``), else a new `LocalCluster`, which takes the remaining
        keywords.
    timeout
        Seconds (or a text such as ``"10s"``) for the connection, ``distributed.comm.timeouts.connect`` by default. A
        scheduler that does not answer is asked again until then.
    set_as_default
        Let dask collections compute on this client, and `Client.current` find it.
    scheduler_file
        A file that the scheduler has written (``dask-scheduler --scheduler-file``).
    security
        Token and certificates; a cluster object brings its own.
    asynchronous
        Return awaitables, on the running event loop, instead of blocking.
    direct_to_workers
        Fetch results from the workers themselves instead of through the scheduler. By default it does so when the
        scheduler is on this machine.
    heartbeat_interval, serializers, deserializers, extensions, connection_limit
        Taken for compatibility: clients send no heartbeats, and everything is pickled.

    Examples
    --------
    >>> client = Client("tcp://10.0.0.1:8786")  # doctest: +SKIP
    >>> client.submit(sum, [1, 2, 3]).result()  # doctest: +SKIP
    6
    """

    _built_in: ClassVar[dict[str, EventHandler]] = BUILT_IN

    def get_executor(self, **options: Any) -> CompatibleExecutor:
        """This cluster as a `concurrent.futures.Executor`; `options` are `submit`'s, for all its calls."""
        return CompatibleExecutor(self, **options)


class TaskClient(Client):
    """The client that the tasks of one worker share, on the worker's own connection settings and event loop.

    It connects in the background: what is asked of it before is sent as soon as it can be. It belongs to the worker, so
    tasks that close it (``with get_client() as client``) leave it open.
    """

    _built_in: ClassVar[dict[str, EventHandler]] = {}
    _early = True

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        super().__init__(
            worker.scheduler_address,
            security=worker.security,
            loop=worker.loop,
            name=f"Client-worker-{worker.name}",
            set_as_default=False,
            direct_to_workers=True,
        )

    def _worker_address(self) -> str | None:
        return self._worker.address

    async def _check_versions(self) -> None:
        pass  # whoever submitted the tasks has been told

    def _begin(self) -> None:
        loops.start_soon(self.loop, self._start())

    def __exit__(self, *_: object) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass

    def close(self, timeout: float | None = None) -> Any:
        """Does nothing: the worker closes it when it ends itself."""

        async def nothing() -> None:
            pass

        return nothing() if self.asynchronous else None
