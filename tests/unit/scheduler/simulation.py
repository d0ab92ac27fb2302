"""A whole cluster without sockets, threads or clocks: one scheduler's state machine, several workers' and some clients,
joined by queues that are emptied in any order.

`Simulation` performs one random step at a time: a message is delivered, a task ends, a worker dies, a client lets go of
a future … Chance comes from the `random.Random` it is given, so a seed is a history, and hypothesis can shrink one.
After every step `invariants.check` recounts everything from scratch. Tasks are evaluated for real: a value is the
nested tuple of its inputs' values, so a wrong, stale or misplaced input shows in the result.
"""

from __future__ import annotations

import pickle
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import invariants
from daskfleet.scheduler.active_memory import ActiveMemoryManager, ActiveMemoryManagerPolicy, ReduceReplicas
from daskfleet.scheduler.machine import SchedulerState
from daskfleet.scheduler.state import CLOSING, PAUSED, RUNNING, ClientState, WorkerState
from daskfleet.worker.machine import Inline, Task, WorkerMachine

PENDING, FINISHED, ERROR, LOST = "pending", "finished", "error", "lost"


@dataclass
class Spec:
    """One task of the universe from which clients pick their graphs."""

    key: str
    dependencies: list[int]
    value: Any
    small: bool
    nbytes: int
    failures: int = 0  # so often it raises before it returns; -1 for always
    deadly: bool = False  # kills its worker
    options: dict[str, Any] | None = None


@dataclass(eq=False)
class SimWorker:
    name: str
    address: str
    machine: WorkerMachine
    state: WorkerState | None = None  # while connected
    scheduler: int = -1  # the life of the scheduler that it is registered with
    up: deque[Any] = field(default_factory=deque)
    down: deque[Any] = field(default_factory=deque)
    running: list[Task] = field(default_factory=list)
    retiring: bool = False


@dataclass(eq=False)
class SimFuture:
    spec: Spec | None
    key: str
    status: str = PENDING
    value: Any = None


@dataclass(eq=False)
class SimClient:
    state: ClientState
    up: deque[Any] = field(default_factory=deque)
    down: deque[Any] = field(default_factory=deque)
    futures: dict[int, SimFuture] = field(default_factory=dict)
    cids: int = 0
    graphs: int = 0
    half_sent: list[Any] = field(default_factory=list)


@dataclass
class Transfer:
    """A request for data between workers; `found` once it is answered."""

    address: str
    target: SimWorker
    ids: list[int]
    life: int
    found: list[Any] | None = None


class Simulation:
    """One history."""

    def __init__(self, rng: random.Random, *, every_step: bool = True) -> None:
        self.rng, self.every_step = rng, every_step
        self.life = 0
        self.left: list[Any] = []
        self.left_by = -1
        self.state = self._new_scheduler()
        self.workers: dict[str, SimWorker] = {}
        self.clients: list[SimClient] = []
        self.transfers: list[Transfer] = []
        self.scatters: list[Any] = []
        self.names = 0
        self.resources: dict[str, dict[str, float]] = {}
        self.failed: dict[str, int] = {}
        self.deaths_by: dict[str, int] = {}
        self.universe = self._universe(rng.randint(1, 9))
        for _ in range(rng.randint(1, 3)):
            self.add_worker()
        for _ in range(rng.randint(1, 2)):
            self.add_client()

    def _new_scheduler(self) -> SchedulerState:
        return SchedulerState(allowed_failures=self.rng.choice((0, 1, 3)), bandwidth=self.rng.choice((1e3, 1e8)))

    def _universe(self, n: int) -> list[Spec]:
        rng = self.rng
        specs: list[Spec] = []
        for i in range(n):
            dependencies = rng.sample(range(i), min(i, rng.choice((0, 0, 1, 1, 2, 3))))
            value = (i, *(specs[d].value for d in dependencies))
            spec = Spec(f"t-{i}", dependencies, value, rng.random() < 0.4, rng.choice((8, 1000, 100_000)))
            trouble = rng.random()
            if trouble < 0.05:
                spec.failures = -1
            elif trouble < 0.12:
                spec.failures = rng.randint(1, 2)
                spec.options = {"retries": rng.randint(1, 2)}
            elif trouble < 0.15:
                spec.deadly = True
            elif trouble < 0.22:
                spec.options = {"workers": [f"w{rng.randint(0, 3)}"], "allow_other_workers": rng.random() < 0.3}
            elif trouble < 0.27:
                spec.options = {"resources": {"GPU": 1}}
            elif trouble < 0.42:
                spec.options, spec.small = {"pinned": True, "borrows": bool(dependencies)}, True
            specs.append(spec)
        return specs

    # Members -------------------------------------------------------------------------------------------------------

    def add_worker(self) -> None:
        rng = self.rng
        nthreads = rng.choice((1, 1, 2, 3))
        name = f"w{self.names}"
        self.names += 1
        resources = {"GPU": float(rng.randint(1, 2))} if rng.random() < 0.4 else {}
        worker = SimWorker(name, f"tcp://h{self.names}:1", WorkerMachine(nthreads, dict(resources)))
        worker.machine.seconds = rng.choice((0.0, 1.0))  # with or without handing threads tasks in advance
        self.workers[worker.address] = worker
        self.resources[name] = resources
        self.connect(worker)

    def connect(self, worker: SimWorker) -> None:
        held = worker.machine.offer()
        state = WorkerState(
            worker.address,
            worker.name,
            worker.machine.nthreads,
            resources=dict(self.resources[worker.name]),
            info={"nanny": self.rng.random() < 0.5},
            status=PAUSED if worker.machine.paused else RUNNING,
        )
        worker.state = state
        worker.down.append(("joined", self.state.add_worker(state, held)))
        if not held and self.left_by == self.life and self.rng.random() < 0.5:  # it is in the place of a dead one
            self.state.inherited(state, [(id, key, pickle.dumps(value)) for id, key, value in self.left])
            worker.down.append(("inherited", self.left))
        self.left_by = -1
        self.flush()

    def disconnect(self, worker: SimWorker, *, expected: bool = False) -> None:
        """The connection between worker and scheduler is gone; what is on the way is lost."""
        worker.up.clear()
        worker.down.clear()
        state, worker.state, worker.retiring = worker.state, None, False
        worker.scheduler = -1
        worker.machine.forget_tasks()
        if state is not None:
            self.state.remove_worker(state, expected=expected)
            self.flush()

    def kill(self, worker: SimWorker, *, expected: bool = False) -> None:
        del self.workers[worker.address]
        machine = worker.machine
        pinned = {spec.key for spec in self.universe if spec.options and spec.options.get("pinned")}
        self.left = [(id, key, machine.data[id]) for id, key in machine.keys.items() if key in pinned]
        self.left_by = worker.scheduler
        self.disconnect(worker, expected=expected)

    def add_client(self) -> None:
        self.clients.append(SimClient(self.state.add_client(f"c{self.names}-{len(self.clients)}")))

    def flush(self) -> None:
        state = self.state
        state.schedule()
        invariants.check_work_conserving(state)
        for peer, messages in state.drain():
            if type(peer) is WorkerState:
                worker = self.workers.get(peer.address)
                if worker is None or worker.state is not peer:
                    assert all(message[0] == "free" for message in messages), f"sent to a dead worker: {messages}"
                    continue
                if peer.status != RUNNING:
                    assert all(message[0] != "run" for message in messages), f"sent to a {peer.status} worker"
                worker.down.extend(_copy(messages))
            else:
                for client in self.clients:
                    if client.state is peer:
                        client.down.extend(_copy(messages))
        assert not state.drain()

    # Steps ---------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Do one thing that can be done; mostly it moves things on."""
        rng = self.rng
        if rng.random() < 0.75:
            moves = self.moves()
            if moves:
                move, *args = rng.choice(moves)
                move(*args)
                self.check()
                return True
        total, pick = sum(weight for weight, _ in EVENTS), rng.random()
        pick *= total
        for weight, event in EVENTS:
            pick -= weight
            if pick <= 0:
                event(self)
                break
        self.check()
        return True

    def moves(self) -> list[Any]:
        """What moves on by itself: messages, tasks, transfers."""
        moves: list[Any] = []
        for worker in self.workers.values():
            if worker.up:
                moves.append((self.deliver_up, worker))
            if worker.down:
                moves.append((self.deliver_down, worker))
            if worker.running:
                moves.append((self.finish_task, worker))
            if worker.retiring:
                moves.append((self.retire_step, worker))
        for client in self.clients:
            if client.up:
                moves.append((self.deliver_from_client, client))
            if client.down:
                moves.append((self.deliver_to_client, client))
        moves.extend((self.explain, name) for name in self.state.unexplained)
        moves.extend((self.transfer_step, transfer) for transfer in self.transfers)
        moves.extend((self.scatter_step, scatter) for scatter in self.scatters)
        return moves

    def explain(self, name: str) -> None:
        """The nanny of a dead worker tells how it ended."""
        how = self.rng.random()
        self.state.explain(name, outside=how < 0.5, memory=how > 0.7)
        self.flush()

    def check(self) -> None:
        if self.every_step:
            invariants.check(self)

    def deliver_up(self, worker: SimWorker) -> None:
        state, peer = self.state, worker.state
        assert peer is not None
        for _ in range(self.rng.randint(1, 3)):
            if not worker.up or worker.state is not peer:
                break
            op, rows = worker.up.popleft()
            getattr(state, op)(peer, rows)
        self.flush()

    def deliver_down(self, worker: SimWorker) -> None:
        machine = worker.machine
        for _ in range(self.rng.randint(1, 4)):
            if not worker.down:
                break
            match worker.down.popleft():
                case ("joined", ids):
                    machine.joined(ids)
                    worker.scheduler = self.life
                case ("inherited", rows):
                    for id, key, value in rows:
                        machine.put(id, key, value, 0)
                case ("run", rows):
                    machine.run(rows)
                case ("free", ids):
                    machine.free(ids)
                case ("function", id, blob):
                    machine.add_function(id, blob)
                case ("forget", ids):
                    machine.forget_functions(ids)
                case ("fetch", rows):
                    machine.fetch(rows)
                case ("yield", ids):
                    machine.give_back(ids)
                case other:
                    raise AssertionError(other)
        self.advance(worker)

    def advance(self, worker: SimWorker) -> None:
        machine = worker.machine
        machine.advance()
        worker.running.extend(machine.execute)
        machine.execute.clear()
        for address, ids in machine.gather:
            self.transfers.append(Transfer(address, worker, ids, worker.scheduler))
        machine.gather.clear()
        if worker.state is not None and machine.outbox:
            worker.up.extend(_copy(machine.outbox))
            machine.outbox = []

    def finish_task(self, worker: SimWorker) -> None:
        task = worker.running.pop(self.rng.randrange(min(len(worker.running), worker.machine.nthreads)))
        spec = self.universe[pickle.loads(task.payload)]
        assert task.key == spec.key
        assert task.function == b"function " + spec.key[-1:].encode(), "another function than the task's"
        inputs = [pickle.loads(value.value) if type(value) is Inline else value for value in task.inputs]
        assert (pickle.loads(task.payload), *inputs) == spec.value, f"{task} got {inputs}"
        failures = self.failed.get(spec.key, 0)
        if spec.deadly and self.deaths_by.get(spec.key, 0) < 6:
            self.deaths_by[spec.key] = self.deaths_by.get(spec.key, 0) + 1
            self.kill(worker)
            return
        if self.rng.random() < 0.02:
            worker.machine.again(task)
        elif spec.failures and (spec.failures < 0 or failures < spec.failures):
            self.failed[spec.key] = failures + 1
            worker.machine.failed(task, pickle.dumps("it raised"), b"", "it raised", 0.1)
        else:
            inline = pickle.dumps(spec.value) if spec.small else None
            worker.machine.finished(task, spec.value, spec.nbytes, self.rng.choice((0.0001, 1.0)), "tuple", inline)
        self.advance(worker)

    def transfer_step(self, transfer: Transfer) -> None:
        """A request is answered, or an answer arrives; either may fail."""
        if transfer.found is None:
            source = self.workers.get(transfer.address)
            transfer.found = []
            if source is not None and source.scheduler == transfer.life and self.rng.random() < 0.95:
                machine = source.machine
                transfer.found = [
                    (id, machine.keys[id], machine.data[id], machine.sizes[id])
                    for id in transfer.ids
                    if id in machine.data
                ]
            return
        self.transfers.remove(transfer)
        target = transfer.target
        if self.workers.get(target.address) is target:
            target.machine.arrived(transfer.address, transfer.ids, transfer.found)
            self.advance(target)

    def deliver_from_client(self, client: SimClient) -> None:
        state = self.state
        match client.up.popleft():
            case ("tasks", *message):
                state.submit(client.state, *message)
            case ("want", rows):
                state.want(client.state, rows)
            case ("release", cids):
                state.release(client.state, cids)
            case ("cancel", cids, force):
                state.cancel(client.state, cids, force=force)
            case ("retry", cids):
                state.retry(client.state, cids)
            case ("scatter", cid, key):
                self.begin_scatter(client, cid, key)
        self.flush()

    def deliver_to_client(self, client: SimClient) -> None:
        op, rows = client.down.popleft()
        for row in rows:
            cid = row if op == "pending" else row[0]
            future = client.futures.get(cid)
            if future is None:
                continue
            match op:
                case "finished":
                    assert future.status != LOST, future
                    future.status = FINISHED
                    if row[3] is not None:
                        assert pickle.loads(row[3]) == self.value(future.key)
                case "erred":
                    future.status = ERROR
                case "lost":
                    future.status = LOST
                case "pending":
                    future.status = PENDING

    def value(self, key: str) -> Any:
        kind, number = key.split("-")
        return self.universe[int(number)].value if kind == "t" else key

    # Events --------------------------------------------------------------------------------------------------------

    def client(self) -> SimClient | None:
        return self.rng.choice(self.clients) if self.clients else None

    def connected(self) -> list[SimWorker]:
        return [worker for worker in self.workers.values() if worker.state is not None]

    def submit(self) -> None:
        """A graph of some targets and what they depend on, in one or several messages, as the client builds it."""
        client = self.client()
        if client is None:
            return
        rng = self.rng
        targets = set(rng.sample(range(len(self.universe)), rng.randint(1, min(3, len(self.universe)))))
        held = {future.key: cid for cid, future in client.futures.items() if future.status != LOST}
        outside: dict[int, int] = {}
        graph: list[int] = []
        stack, seen = list(targets), set(targets)
        while stack:
            i = stack.pop()
            graph.append(i)
            for d in self.universe[i].dependencies:
                if d in seen or d in outside:
                    continue
                if d not in targets and (cid := held.get(f"t-{d}")) and rng.random() < 0.7:
                    outside[d] = cid
                else:
                    seen.add(d)
                    stack.append(d)
        graph.sort()
        positions = {i: n for n, i in enumerate(graph)}
        rows = []
        for n, i in enumerate(graph):
            spec, cid = self.universe[i], 0
            if i in targets and spec.key not in held:
                client.cids += 1
                cid = client.cids
                client.futures[cid] = SimFuture(spec, spec.key)
            dependencies = [positions[d] if d in positions else -outside[d] for d in spec.dependencies]
            rows.append((cid, spec.key, n, pickle.dumps(i), dependencies or None, 0, spec.options))
        client.graphs += 1
        functions = [b"function " + self.universe[i].key[-1:].encode() for i in graph]
        start, messages = 0, []
        while True:
            end = min(start + rng.choice((1, 2, 100)), len(rows))
            last = end == len(rows)
            messages.append(("tasks", client.graphs, last, rng.randint(-1, 1), functions, ["t"], rows[start:end]))
            start = end
            if last:
                break
        client.up.extend(messages)

    def want(self) -> None:
        if (client := self.client()) is not None:
            future = SimFuture(None, f"t-{self.rng.randrange(len(self.universe))}")
            client.cids += 1
            client.futures[client.cids] = future
            client.up.append(("want", [(client.cids, future.key)]))

    def release(self) -> None:
        client = self.client()
        if client is not None and client.futures:
            cids = self.rng.sample(sorted(client.futures), self.rng.randint(1, min(3, len(client.futures))))
            for cid in cids:
                del client.futures[cid]
            client.up.append(("release", cids))

    def cancel(self) -> None:
        client = self.client()
        if client is not None and client.futures:
            client.up.append(("cancel", [self.rng.choice(sorted(client.futures))], self.rng.random() < 0.3))

    def retry(self) -> None:
        client = self.client()
        if client is not None:
            erred = [cid for cid, future in client.futures.items() if future.status == ERROR]
            if erred:
                client.up.append(("retry", erred))

    def client_dies(self) -> None:
        client = self.client()
        if client is not None:
            self.clients.remove(client)
            self.state.remove_client(client.state.id)
            self.flush()

    def client_comes(self) -> None:
        if len(self.clients) < 3:
            self.names += 1
            self.add_client()

    def worker_comes(self) -> None:
        if len(self.workers) < 4:
            self.add_worker()

    def worker_dies(self) -> None:
        if self.workers:
            self.kill(self.rng.choice(list(self.workers.values())))

    def worker_loses_connection(self) -> None:
        """… and comes back, now or later; what it still runs, it goes on running."""
        for worker in list(self.workers.values()):
            if worker.state is None:
                self.connect(worker)
                return
        if self.workers:
            worker = self.rng.choice(list(self.workers.values()))
            self.disconnect(worker)
            if self.rng.random() < 0.5:
                self.connect(worker)

    def pause(self) -> None:
        connected = self.connected()
        if connected:
            worker = self.rng.choice(connected)
            if worker.state.status == RUNNING and self.rng.random() < 0.6:
                worker.machine.paused = True
                self.state.set_status(worker.state, PAUSED)
            elif worker.state.status == PAUSED:
                worker.machine.paused = False
                self.state.set_status(worker.state, RUNNING)
                self.advance(worker)
            self.flush()

    def secede(self) -> None:
        """A task goes to wait for others, or comes back."""
        workers = [worker for worker in self.workers.values() if worker.running]
        if workers:
            worker = self.rng.choice(workers)
            task = self.rng.choice(worker.running[: worker.machine.nthreads])
            (worker.machine.secede if self.rng.random() < 0.6 else worker.machine.rejoin)(task)
            self.advance(worker)

    def rebalance(self) -> None:
        self.state.rebalance()
        self.flush()

    def retire(self) -> None:
        connected = [worker for worker in self.connected() if not worker.retiring]
        if connected:
            worker = self.rng.choice(connected)
            worker.machine.paused = False
            self.state.set_status(worker.state, CLOSING)
            worker.retiring = True
            self.flush()

    def retire_step(self, worker: SimWorker) -> None:
        """As the server: move what only this worker holds, and let it go when that has been done."""
        state = self.state
        assert worker.state is not None
        if not state.hand_over([worker.state], Counter()):
            others = [peer for peer in state.workers.values() if peer.status == RUNNING]
            wanted = [ts for ts in worker.state.data if len(ts.holders) == 1 and ts.value is None]
            assert not (others and wanted), f"retired with {wanted}"
            self.kill(worker, expected=True)
        self.flush()

    def scheduler_restarts(self) -> None:
        """All that it knew is gone; clients go, workers come back with their data."""
        self.clients.clear()
        self.scatters.clear()
        self.state = self._new_scheduler()
        self.life += 1
        for worker in self.workers.values():
            worker.state, worker.retiring = None, False
            worker.up.clear()
            worker.down.clear()
            worker.machine.forget_tasks()
            worker.machine.paused = False
        self.names += 1
        self.add_client()
        for worker in list(self.workers.values()):
            if self.rng.random() < 0.7:
                self.connect(worker)

    def scatter(self) -> None:
        client = self.client()
        if client is not None:
            client.cids += 1
            key = f"s-{self.rng.randint(0, 2)}"
            client.futures[client.cids] = SimFuture(None, key)
            client.up.append(("scatter", client.cids, key))

    def begin_scatter(self, client: SimClient, cid: int, key: str) -> None:
        running = [worker for worker in self.connected() if worker.state.status == RUNNING]
        # Two at once of one key, with a worker that comes back in between, may leave a copy that nobody knows of.
        if not running or any(scatter[0] == key for scatter in self.scatters):
            client.futures.pop(cid, None)  # the call fails with a TimeoutError
            return
        targets = self.rng.sample(running, self.rng.randint(1, min(2, len(running))))
        id = self.state.expect_data(client.state, cid, key)
        self.scatters.append([key, id, [(worker, worker.state) for worker in targets], None])

    def scatter_step(self, scatter: list[Any]) -> None:
        """The data is put on its workers, then the scheduler hears of it."""
        key, id, targets, there = scatter
        if there is None:
            if any(worker.state is state and worker.scheduler != self.life for worker, state in targets):
                return  # not joined yet: the worker answers when it has
            scatter[3] = [state for worker, state in targets if worker.state is not None]
            for worker, _ in targets:
                if worker.state is not None:
                    worker.machine.put(id, key, key, 1000)
            return
        self.scatters.remove(scatter)
        for state in there:
            self.state.data_put(id, 1000, "str", state)
        self.state.data_expected_no_more(id)
        self.flush()

    # Ends ----------------------------------------------------------------------------------------------------------

    def manage_memory(self) -> None:
        """Copies that nobody needs are dropped, or others made."""

        class Replicate(ActiveMemoryManagerPolicy):
            def run(policy) -> Any:
                for ts in list(self.state.tasks.values()):
                    if self.rng.random() < 0.2:
                        yield "replicate", ts, None

        policy = ReduceReplicas() if self.rng.random() < 0.5 else Replicate()
        ActiveMemoryManager(self.state, [policy]).run_once()
        self.flush()

    def settle(self) -> None:
        """Nothing more happens from outside: what is on its way arrives, what can run runs."""
        for worker in list(self.workers.values()):
            if worker.state is None:
                self.connect(worker)
            if worker.state.status == PAUSED:
                worker.machine.paused = False
                self.state.set_status(worker.state, RUNNING)
                self.flush()
                self.advance(worker)
        steps = 0
        while True:
            if not any(worker.state.status == RUNNING for worker in self.connected()):
                self.add_worker()
            moves = self.moves()
            if not moves:
                self.state.rebalance()
                self.flush()
                moves = self.moves()
                if not moves:
                    break
            move, *args = self.rng.choice(moves)
            move(*args)
            self.check()
            steps += 1
            assert steps < 20_000, "does not come to rest"

    def finish(self) -> None:
        """Come to rest and look at every future; then let go of all, and look that nothing is left."""
        self.settle()
        invariants.check(self)
        invariants.check_futures(self)
        for client in self.clients:
            client.up.append(("release", list(client.futures)))
            client.futures.clear()
        self.settle()
        invariants.check(self)
        invariants.check_empty(self)


def _copy(messages: list[Any]) -> list[Any]:
    """What the wire does: rows are no longer shared with whoever made them."""
    copied = []
    for message in messages:
        op, *rest = message
        copied.append((op, *(tuple(item) if type(item) is list else item for item in rest)))
    return copied


#: What may happen, and how often.
EVENTS = [
    (20, Simulation.submit),
    (3, Simulation.want),
    (8, Simulation.release),
    (3, Simulation.cancel),
    (3, Simulation.retry),
    (1, Simulation.client_dies),
    (1, Simulation.client_comes),
    (3, Simulation.worker_comes),
    (4, Simulation.worker_dies),
    (4, Simulation.worker_loses_connection),
    (4, Simulation.pause),
    (4, Simulation.rebalance),
    (3, Simulation.manage_memory),
    (4, Simulation.secede),
    (3, Simulation.retire),
    (0.5, Simulation.scheduler_restarts),
    (4, Simulation.scatter),
]


def run(rng: random.Random, steps: int, *, every_step: bool = True) -> None:
    """One history of `steps` steps, from its start to a cluster that is empty again."""
    simulation = Simulation(rng, every_step=every_step)
    for _ in range(steps):
        simulation.step()
    simulation.finish()
