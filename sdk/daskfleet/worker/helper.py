"""A process with one thread that has imported the worker and forks off as many as it is told to.

It takes orders as JSON lines on its standard input, ends with it, and answers through a pipe of its own: standard
output is for what tasks print. It imports as little as it can, since a cluster's first worker waits for that.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import signal
import sys

from daskfleet.exceptions import DaskfleetError
from daskfleet.worker import process as _process  # noqa: F401  what workers need is imported here, once for all
from daskfleet.worker.nanny import Nanny


async def serve(answers: int) -> None:
    """The helper: a nanny for each line, all in this process's one thread, until standard input ends."""
    loop = asyncio.get_running_loop()
    stream = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), sys.stdin)
    nannies: list[Nanny] = []
    tasks: set[asyncio.Task[None]] = set()

    async def keep(nanny: Nanny) -> None:
        try:
            await nanny.start()
        except DaskfleetError as error:
            os.write(answers, json.dumps({"failed": str(error)}).encode() + b"\n")

    async for line in stream:
        nanny = Nanny(**pickle.loads(bytes.fromhex(json.loads(line))))
        nannies.append(nanny)
        task = asyncio.create_task(keep(nanny))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*(nanny.close(timeout=2) for nanny in nannies))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the notebook; the pipe's end is for us
    logging.basicConfig(level=int(sys.argv[1]), format="%(asctime)s - %(name)s - %(levelname)s - %(message)s")
    sys.path[:] = json.loads(sys.argv[2])  # functions are imported from where our parent imports them
    asyncio.run(serve(int(sys.argv[3])))
