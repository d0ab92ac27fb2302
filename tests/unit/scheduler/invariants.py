"""What holds in a cluster at every moment, recounted from scratch (`simulation`)."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from daskfleet.protocol.serialize import nbytes
from daskfleet.scheduler import placement
from daskfleet.scheduler.machine import SchedulerState
from daskfleet.scheduler.queues import _full
from daskfleet.scheduler.state import (
    ERRED,
    MEMORY,
    NO_WORKER,
    PROCESSING,
    QUEUED,
    RELEASED,
    RUNNING,
    WAITING,
    TaskState,
    WorkerState,
)
from daskfleet.worker.machine import EXECUTING, WorkerMachine

if TYPE_CHECKING:
    from simulation import Simulation

ACTIVE = (WAITING, QUEUED, NO_WORKER, PROCESSING)


def check(simulation: Simulation) -> None:
    check_scheduler(simulation.state)
    for worker in simulation.workers.values():
        check_worker(worker.machine)
        assert worker.machine.executing == sum(task.state == EXECUTING for task in worker.running)


def check_scheduler(state: SchedulerState) -> None:
    tasks = dict(state.tasks.items())  # read many times below
    assert len(tasks) == len(state.keys)
    counts: Counter[str] = Counter()
    dependents: Counter[TaskState] = Counter()
    waiters: Counter[TaskState] = Counter()
    users: Counter[Any] = Counter()
    backlog: Counter[WorkerState] = Counter()
    wants: Counter[Any] = Counter()
    inline = processing = 0
    for client in state.clients.values():
        for cid, ts in client.futures.items():
            assert tasks.get(ts.id) is ts, "a future of a forgotten task"
            wants[ts, client, cid] += 1
        for graph in client.graphs.values():
            waiters.update(ts for ts in graph if ts is not None)
    for id, ts in tasks.items():
        assert ts.id == id and state.keys[ts.key] is ts
        counts[ts.state] += 1
        dependents.update(ts.dependencies)
        if ts.state in ACTIVE or (ts.state == MEMORY and ts.options is not None and ts.options.borrows):
            waiters.update(ts.dependencies)
        if ts.function is not None:
            users[ts.function] += 1
        for client, cid in ts.wanted:
            wants[ts, client, cid] -= 1
        assert len(ts.wants) == len(ts.wanted)
    assert not any(wants.values()), "tasks and clients disagree on who wants what"
    assert {name: n for name, n in state.counts.items() if n} == dict(counts)

    for ts in tasks.values():
        needed = ts.waiters or ts.wants
        assert ts.n_dependents == dependents[ts], ts
        assert ts.waiters == waiters[ts], ts
        assert ts.function is not None or not ts.dependencies
        assert needed or ts.n_dependents, f"{ts} should have been forgotten"
        match ts.state:
            case "waiting":
                assert ts.waiting_on == sum(dep.state != MEMORY for dep in ts.dependencies) > 0, ts
                assert all(dep.state in (MEMORY, *ACTIVE) or dep.id in state.expected for dep in ts.dependencies), ts
                assert ts.worker is None
            case "queued":
                assert all(dep.state == MEMORY for dep in ts.dependencies)
                if ts.worker is None:
                    assert ts in (state._cautious if ts in state.suspects else state._ready)
                else:
                    assert state.workers.get(ts.worker.address) is ts.worker and ts.worker.status == RUNNING
                    assert placement.allowed(ts, ts.worker)
                    assert ts in ts.worker.ready
                    backlog[ts.worker] += 1
            case "no-worker":
                assert ts.worker is None and ts in state.unrunnable
                assert not any(w.status == RUNNING and placement.allowed(ts, w) for w in state.workers.values())
            case "processing":
                processing += 1
                assert state.workers.get(ts.worker.address) is ts.worker
                assert (ts in ts.worker.processing) != (ts in ts.worker.long_running)
                assert placement.allowed(ts, ts.worker)
            case "memory":
                assert needed, f"{ts} is of no use to anyone"
                assert ts.holders or ts.value is not None
                assert len(set(ts.holders)) == len(ts.holders)
                if ts.options is not None and ts.options.pinned:
                    assert len(ts.holders) == 1 and ts.value is not None
                if ts.options is not None and ts.options.borrows:
                    assert all(dep.state == MEMORY for dep in ts.dependencies), f"{ts} has lost what it borrowed"
            case "erred":
                assert ts.failure is not None
            case "released":
                assert not ts.wants or ts.id in state.expected, f"{ts} is wanted"
        if ts.state in ACTIVE:
            assert needed, f"{ts} is of no use to anyone"
        if ts.state != MEMORY:
            assert not ts.holders and ts.value is None
        if ts.state not in (QUEUED, PROCESSING):
            assert ts.worker is None, ts
        if ts.value is not None:
            inline += nbytes(ts.value)
    assert state.inline_bytes == inline
    queued = Counter(ts.prefix for ts in tasks.values() if ts.state in (QUEUED, NO_WORKER))
    assert {prefix: prefix.queued for prefix in state.prefixes.values() if prefix.queued} == queued
    assert state.replicated.keys() == {ts for ts in tasks.values() if len(ts.holders) > 1}
    assert len(state.unrunnable) == counts[NO_WORKER]
    assert all(tasks.get(ts.id) is ts and ts.state in ACTIVE for ts in state.suspects)
    assert all(tasks.get(ts.id) is ts and ts.state in (MEMORY, RELEASED, WAITING) for ts in state.acquitted)

    for worker in state.workers.values():
        running = [*worker.processing, *worker.long_running]
        assert all(ts.state == PROCESSING and ts.worker is worker for ts in running)
        processing -= len(running)
        assert math.isclose(worker.occupancy, sum(worker.processing.values()), abs_tol=1e-9)
        assert worker.suspects == sum(ts in state.suspects for ts in running)
        assert all(worker in ts.holders for ts in worker.data)
        assert worker.nbytes == sum(ts.nbytes for ts in worker.data)
        assert worker.backlog == backlog[worker]
        assert (worker in state._backlogged) == (worker.backlog > 0)
        assert worker.status == RUNNING or worker not in state._open
        assert worker.status != RUNNING or _full(worker) or worker in state._open
    assert processing == 0
    assert all(state.workers.get(worker.address) is worker for worker in state._open)
    assert all(state.workers.get(worker.address) is worker for worker in state._backlogged)
    holders = sum(len(ts.holders) for ts in tasks.values())
    assert holders == sum(len(worker.data) for worker in state.workers.values())
    for blob, function in state.functions.items():
        assert function.blob == blob
        assert function.users == users[function]
        assert (function in state._idle_functions) == (not function.users)
    assert users.keys() <= set(state.functions.values())


def check_work_conserving(state: SchedulerState) -> None:
    """No worker stands idle while there is something that any of them may run."""
    anywhere = [ts for ts in state.tasks.values() if ts.state == QUEUED and ts.worker is None]
    for worker in state.workers.values():
        if worker.status != RUNNING:
            continue
        if any(ts not in state.suspects for ts in anywhere):
            assert _full(worker), f"{worker} could run {anywhere}"
        if any(placement.allowed(ts, worker) and not state.apart(ts, worker) for ts in anywhere):
            assert len(worker.processing) >= worker.nthreads, f"{worker} could run {anywhere}"
        if worker.backlog:
            assert _full(worker), f"{worker} has a backlog"


def check_worker(machine: WorkerMachine) -> None:
    assert machine.data.keys() == machine.keys.keys() == machine.sizes.keys()
    ready = {entry[-1] for entry in machine._ready}
    for id, task in machine.tasks.items():
        assert task.id == id
        match task.state:
            case "waiting":
                assert task.missing
                for dep in task.missing:
                    assert task in machine.fetches[dep].tasks
            case "ready":
                assert task in ready and not task.missing
    for id, fetch in machine.fetches.items():
        assert fetch.id == id
        assert fetch.keep or fetch.tasks, "data that nobody waits for is fetched"
        for task in fetch.tasks:
            assert machine.tasks.get(task.id) is task and id in task.missing
        queued = id in machine._to_fetch.get(fetch.address, ())
        assert queued or id in machine._asking.get(fetch.address, ()), "a fetch that never ends"
    assert all(amount >= 0 for amount in machine.resources.values())
    assert not machine.gather and not machine.execute


def check_futures(simulation: Simulation) -> None:
    """At rest: every future has its end, and finished ones have the right value where the scheduler says."""
    state = simulation.state
    assert not state.counts[WAITING] or state.counts[NO_WORKER]
    assert not state.counts[QUEUED] and not state.counts[PROCESSING]
    for client in simulation.clients:
        assert not client.state.graphs
        for cid, future in client.futures.items():
            ts = client.state.futures.get(cid)
            match future.status:
                case "pending":
                    assert ts is not None and ts.state in (WAITING, NO_WORKER), f"{future} never ends: {ts}"
                    assert _unrunnable(ts), f"{ts} could run"
                case "finished":
                    assert ts is not None and ts.state == MEMORY, f"{future}, {ts}"
                case "error":
                    assert ts is not None and ts.state == ERRED, f"{future}, {ts}"
                case "lost":
                    assert ts is None
    for ts in state.tasks.values():
        assert ts.state not in (WAITING,) or _unrunnable(ts)
        for holder in ts.holders:
            machine = simulation.workers[holder.address].machine
            assert machine.keys[ts.id] == ts.key
            assert machine.data[ts.id] == simulation.value(ts.key)
    for worker in simulation.workers.values():
        for id in worker.machine.data:
            ts = state.tasks.get(id)
            assert ts is not None and worker.state in ts.holders, f"{worker.machine.keys[id]} lies about"


def _unrunnable(ts: TaskState) -> bool:
    return ts.state == NO_WORKER or (ts.state == WAITING and any(_unrunnable(dep) for dep in ts.dependencies))


def check_empty(simulation: Simulation) -> None:
    state = simulation.state
    assert not state.tasks and not state.keys and not state.unrunnable and not state.expected
    assert not state.suspects and not state.acquitted
    assert not any(state.counts.values())
    assert state.inline_bytes == 0 and not state.replicated and not state.copies
    assert not any(function.users for function in state.functions.values())
    for client in state.clients.values():
        assert not client.futures and not client.graphs
    for worker in simulation.workers.values():
        machine = worker.machine
        assert not worker.state.processing and not worker.state.data and not worker.state.backlog
        assert worker.state.nbytes == 0 and worker.state.occupancy == 0
        assert not machine.data and not machine.tasks and not machine.fetches
        assert not machine._to_fetch and not machine._asking
        assert machine.resources == simulation.resources[worker.name]
