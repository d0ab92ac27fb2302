"""The active memory manager: which copies of data are too many or too few. No I/O; `extensions.memory_manager` runs it.

Data is copied when a task needs it elsewhere, and the copies stay in case that another one does. `ReduceReplicas` lets
go of those that nothing at hand needs. Policies suggest, the manager decides where and when: as in distributed, whose
policies work here as far as they look at what a `TaskState` of ours has.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable

from daskfleet.scheduler.queues import Queues
from daskfleet.scheduler.state import MEMORY, PROCESSING, RUNNING, TaskState, WorkerState
from daskfleet.scheduler.transitions import Transitions

#: ``("replicate" or "drop", the task, workers among which to choose, or None for any)``
Suggestion = tuple[str, TaskState, Collection[WorkerState] | None]


class ActiveMemoryManagerPolicy:
    """Base class of policies.

    Attributes
    ----------
    manager
        The `ActiveMemoryManager` that it was added to; its `state` holds what the scheduler knows.
    """

    manager: ActiveMemoryManager

    def run(self) -> Generator[Suggestion, WorkerState | None, None]:
        """Yield suggestions; each ``yield`` gives the worker that was chosen, or None if none will do."""
        raise NotImplementedError


class ReduceReplicas(ActiveMemoryManagerPolicy):
    """Keep a copy for each unfinished dependent, at least one, and all that `Client.replicate` or a scatter with
    ``broadcast=True`` has made.

    In distributed the latter are dropped as well.
    """

    def run(self) -> Generator[Suggestion, WorkerState | None, None]:
        state = self.manager.state
        for ts in list(state.replicated):
            wanted = max(1, ts.waiters, state.copies.get(ts, 1))
            for _ in range(len(ts.holders) - wanted):
                if (yield "drop", ts, None) is None:
                    break


class ActiveMemoryManager:
    """Asks its policies, and has copied or dropped what they suggest.

    Parameters
    ----------
    state
        The scheduler's.
    """

    def __init__(self, state: Transitions, policies: Iterable[ActiveMemoryManagerPolicy] = ()) -> None:
        self.state = state
        self.policies: list[ActiveMemoryManagerPolicy] = []
        for policy in policies:
            self.add_policy(policy)

    def add_policy(self, policy: ActiveMemoryManagerPolicy) -> None:
        """Ask this one, too."""
        policy.manager = self
        self.policies.append(policy)

    def run_once(self) -> None:
        """Ask all policies once; the messages to the workers are left in the state's outboxes."""
        for policy in self.policies:
            suggestions, chosen = policy.run(), None
            while True:
                try:
                    what, ts, among = suggestions.send(chosen)
                except StopIteration:
                    break
                chosen = self._replicate(ts, among) if what == "replicate" else self._drop(ts, among)

    def _replicate(self, ts: TaskState, among: Collection[WorkerState] | None) -> WorkerState | None:
        """Copy to the worker that holds least."""
        able = [
            worker
            for worker in self.state.workers.values()
            if worker.status == RUNNING and worker not in ts.holders and ts.id not in worker.incoming
            if among is None or worker in among
        ]
        if ts.state != MEMORY or ts.pinned or not ts.holders or not able:
            return None
        target = min(able, key=lambda worker: worker.nbytes)
        copy(self.state, ts, target)
        return target

    def _drop(self, ts: TaskState, among: Collection[WorkerState] | None) -> WorkerState | None:
        """Drop from a worker that is leaving or paused, else from the one that holds most; never the last copy, nor one
        that a task there is using."""
        using = {dependent.worker for dependent in ts.dependents or () if dependent.state == PROCESSING}
        able = [holder for holder in ts.holders if holder not in using and (among is None or holder in among)]
        if len(ts.holders) < 2 or not able:
            return None
        source = max(able, key=lambda worker: (worker.status != RUNNING, worker.nbytes))
        self.state._free(source, ts.id)
        self.state._forget_copy(ts, source)
        return source


def copy(state: Queues, ts: TaskState, target: WorkerState) -> None:
    """Have `target` fetch the data of `ts` and keep it."""
    target.incoming.add(ts.id)
    addresses = [holder.address for holder in ts.holders]
    state._tell(target, "fetch", (ts.id, ts.key, ts.nbytes, addresses))
