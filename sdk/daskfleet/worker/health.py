"""What a worker does now and then: look at its memory, and tell the scheduler how it is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING

from daskfleet import config
from daskfleet.protocol.messages import HEARTBEAT, RESTING
from daskfleet.worker import heap
from daskfleet.worker.memory import MemoryMonitor, own_memory, resident_memory

if TYPE_CHECKING:
    from daskfleet.worker.server import Worker
    from daskfleet.worker.spill import Spilling

logger = logging.getLogger(__name__)

#: Share of the memory limit from which on memory is short.
SHORT = 0.5
#: Percent of a processor below which a worker has nothing to do.
IDLE = 5.0
#: Bytes by which an idle worker may have grown before it gives back what it keeps.
GROWN = 4 << 20


async def watch_memory(worker: Worker, monitor: MemoryMonitor, spilling: Spilling) -> None:
    """Spill, pause and resume as the memory fills and empties; look less often while nothing can fill it."""
    interval = config.seconds("distributed.worker.memory.monitor-interval") or 0.2
    spent, asleep = time.process_time(), 0.0
    while worker.status != "closed":
        spent, before = time.process_time(), spent
        machine, worked = worker.machine, spent - before > asleep * IDLE / 100
        if worked or worker.stirred.is_set() or machine.tasks or machine.paused:
            worker.stirred.clear()
            asleep = interval
            await asyncio.sleep(interval)
        else:
            asleep = max(interval, RESTING)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(asleep):
                    await worker.stirred.wait()
        resident = _needed(monitor)
        if monitor.excess(resident):
            await spilling.settled()  # which may have been enough
            if excess := monitor.excess(_needed(monitor)):
                await spilling.free(excess)
            resident = _needed(monitor)
        paused = monitor.pauses(resident)
        if paused != worker.machine.paused:
            used = 100 * own_memory() // monitor.limit
            logger.warning("%s: %d %% of the memory limit is in use", "pausing" if paused else "resuming", used)
            worker.machine.paused = paused
            if worker._scheduler is not None and worker.status == "running":
                worker._scheduler.send(("status", "paused" if paused else "running"))
            worker._advance()


def _needed(monitor: MemoryMonitor) -> int:
    """Bytes that this process uses; when they are many, without those that it merely keeps for reuse."""
    resident = resident_memory()
    if resident > SHORT * monitor.limit:
        heap.give_back()
        resident = own_memory()
    return resident


async def beat(worker: Worker) -> None:
    """Tell the scheduler how we are."""
    last_time, last_used = time.monotonic(), sum(os.times()[:2])
    worked = False
    held, rest = 0, resident_memory()  # when memory was given back last
    while worker.status != "closed":
        machine = worker.machine
        now, used = time.monotonic(), sum(os.times()[:2])
        cpu = 100 * (used - last_used) / max(now - last_time, 0.01)
        last_time, last_used = now, used
        memory = resident_memory()
        # Making and freeing large results takes little of the processor's time.
        if cpu < IDLE and (worked or len(machine.data) != held or memory > rest + GROWN):
            heap.give_back()
            held, rest = len(machine.data), (memory := resident_memory())
        worked = cpu >= IDLE
        if worker._scheduler is not None:
            metrics = {
                "memory": memory,
                "spilled": worker.stored.disk_bytes if worker.stored is not None else 0,
                "cpu": cpu,
                "executing": machine.executing,
                "ready": len(machine.tasks) - machine.executing,
                "in_memory": len(machine.data),
                "time": time.time(),
            }
            worker._scheduler.send(("heartbeat", metrics))
        await asyncio.sleep(worker.pace * (HEARTBEAT if worked or machine.tasks else RESTING))
