"""The process that a nanny keeps: one worker, from its start to its end.

It is forked off the nanny when that has a single thread, which is the case for ``dask-worker`` and for `LocalCluster`:
nothing has to be imported again, so a worker is up in milliseconds and shares its code's memory with the others.
Elsewhere it is a fresh interpreter, ``python -m daskfleet.worker.process``, that reads its options from standard input.

A pipe ties it to its nanny. The worker says through it when it is up, and why it failed; and when the nanny is gone,
however that came about, the pipe breaks and the worker ends. On Linux the system ends it, even if its event loop is
stuck.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import pickle
import signal
import socket
import sys
from functools import partial
from typing import Any, NoReturn

from daskfleet import entering
from daskfleet.client.current import configure  # now: two threads that import dask and us at once would wait for ever
from daskfleet.compat import VARIABLE, as_distributed
from daskfleet.exceptions import DaskfleetError
from daskfleet.http.logs import ring
from daskfleet.importing import when_imported
from daskfleet.worker import heap
from daskfleet.worker.link import WorkerEnd
from daskfleet.worker.server import Worker

logger = logging.getLogger(__name__)

#: Exit status of a worker whose start failed in a way that another attempt would not mend.
HOPELESS = 78

#: What takes seconds to import, and may be imported before a fork as well as after it.
HEAVY = ("numpy", "pandas", "pyarrow", "dask.array", "dask.dataframe")


_PR_SET_PDEATHSIG = 1


def run(options: dict[str, Any], pipe: socket.socket) -> int:
    """Run a worker to its end; the process's exit status."""
    if sys.platform == "linux":  # a nanny that is gone already has closed the pipe
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(VARIABLE):
        as_distributed()
    when_imported("dask", configure)  # what tasks compute by themselves runs on the cluster, too
    return entering.run(_main(options, pipe))


async def _main(options: dict[str, Any], pipe: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    pipe.setblocking(False)
    options = dict(options)
    predecessor, folder = options.pop("predecessor", ""), options.pop("predecessors_folder", None)

    def leave() -> None:
        if not starting.cancel():  # it is up
            tasks.append(loop.create_task(worker.close_gracefully(reason="told to stop")))

    def orphaned() -> None:
        logger.warning("the nanny is gone, so this worker ends")
        os._exit(1)

    nanny = WorkerEnd(pipe, orphaned)
    try:
        worker: Worker = options.pop("worker_class", Worker)(**options)
    except (TypeError, ValueError, OSError) as error:
        await nanny.say({"failed": str(error)})
        return HOPELESS
    heap.keep_freed_memory(worker.memory_limit)
    tasks: list[asyncio.Task[None]] = []
    starting = loop.create_task(worker.start())  # it may wait for its scheduler for as long as there is none
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    worker.predecessor, worker.predecessors_folder = predecessor, folder
    worker.nanny = nanny

    def imported(name: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            asyncio.run_coroutine_threadsafe(nanny.say({"imported": name}), loop)

    for name in HEAVY:
        if name not in sys.modules:
            when_imported(name, partial(imported, name))
    try:
        await starting
    except asyncio.CancelledError:
        await worker.close("told to stop before it was up")
        return 0
    except (OSError, ValueError, TimeoutError, DaskfleetError) as error:
        await nanny.say({"failed": str(error)})
        return HOPELESS
    await nanny.say({"address": worker.address, "name": worker.name, "folder": worker.local_directory})
    await worker.finished()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # it ends already
    return 0


def become(options: dict[str, Any], pipe: socket.socket) -> NoReturn:
    """Turn a freshly forked child of a nanny into a worker; never returns.

    The nanny's event loop and sockets are still on the stack below us. They must not run and must not be finalised
    here, since the kernel objects behind them are shared with the nanny: so their descriptors are closed behind
    Python's back, and the process ends by `os._exit`.
    """
    status = 1
    try:
        asyncio._set_running_loop(None)
        asyncio.set_event_loop(None)
        signal.set_wakeup_fd(-1)
        ring().lines.clear()  # they are the nanny's
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        keep = pipe.fileno()
        os.closerange(3, keep)
        os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
        status = run(options, pipe)
    except BaseException:
        logger.exception("the worker failed")
    finally:
        with contextlib.suppress(Exception):
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _options, _logging = pickle.load(sys.stdin.buffer)
    logging.basicConfig(**_logging)
    sys.exit(run(_options, socket.socket(fileno=int(sys.argv[1]))))
