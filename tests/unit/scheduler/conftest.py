"""A scheduler's state machine with peers whose messages can be looked at."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from daskfleet.scheduler.machine import SchedulerState
from daskfleet.scheduler.state import ClientState, TaskState, WorkerState


class Bench:
    """One scheduler and one client; what peers are sent is found in `sent`."""

    def __init__(self, **options: Any) -> None:
        self.state = SchedulerState(**options)
        self.client: ClientState = self.state.add_client("client")
        self.sent: list[tuple[Any, tuple[Any, ...]]] = []
        self._cids, self._graphs = itertools.count(1), itertools.count(1)

    def worker(self, name: str, nthreads: int = 1, held: Sequence[Any] = (), **more: Any) -> WorkerState:
        worker = WorkerState(f"tcp://{name}:1", name, nthreads, **more)
        self.state.add_worker(worker, held)
        self.flush()
        return worker

    def submit(self, *rows: tuple[Any, ...], priority: int = 0, client: ClientState | None = None) -> list[TaskState]:
        """Rows are ``(key, dependencies, options)``, the last two may be left out; a future for each."""
        encoded = []
        for key, *rest in rows:
            dependencies, options = (*rest, None, None)[:2]
            encoded.append((next(self._cids), key, 0, b"payload", dependencies, 0, options))
        prefix = rows[0][0].partition("-")[0]
        self.state.submit(client or self.client, next(self._graphs), True, priority, [b"function"], [prefix], encoded)
        self.flush()
        return [self.state.keys[row[0]] for row in rows]

    def flush(self) -> None:
        self.state.schedule()
        for peer, messages in self.state.drain():
            self.sent.extend((peer, message) for message in messages)

    def take(self, peer: Any, op: str) -> list[Any]:
        """The rows of these messages that `peer` was sent since this was last asked."""
        rows = [row for to, (name, *rest) in self.sent if to is peer and name == op for row in rest[-1]]
        self.sent = [(to, message) for to, message in self.sent if to is not peer or message[0] != op]
        return rows

    def done(self, worker: WorkerState, ts: TaskState, value: bytes | None = None, nbytes: int = 8) -> None:
        self.state.done(worker, [(ts.id, ts.attempt, nbytes, 0.001, "int", value)])
        self.flush()


@pytest.fixture
def bench() -> Callable[..., Bench]:
    return Bench
