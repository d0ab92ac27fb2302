"""What clients' events change: submissions, futures that come and go, cancelling, retrying."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import Serialized, join
from daskfleet.scheduler.state import (
    ERRED,
    MEMORY,
    NO_WORKER,
    PROCESSING,
    QUEUED,
    RELEASED,
    WAITING,
    ClientState,
    Options,
    TaskState,
)
from daskfleet.scheduler.transitions import Transitions

#: User priorities reach from minus this to this.
MAX_PRIORITY = 1023


class Clients(Transitions):
    """Events of clients."""

    def add_client(self, id: str) -> ClientState:
        """A client has come, or come back: then its futures are still here, and it sends again what it was sending."""
        client = self.clients.get(id)
        if client is None:
            client = self.clients[id] = ClientState(id)
        for number in list(client.graphs):
            self._close_graph(client, number)
        return client

    def remove_client(self, id: str) -> None:
        """The client is gone: what only it wanted is let go."""
        client = self.clients.pop(id, None)
        if client is not None:
            for number in list(client.graphs):
                self._close_graph(client, number)
            self.release(client, list(client.futures))

    def submit(
        self,
        client: ClientState,
        number: int,
        last: bool,
        priority: int,
        functions: Sequence[bytes],
        prefixes: Sequence[str],
        rows: Sequence[tuple[Any, ...]],
    ) -> None:
        """Take the next rows of a graph, in topological order (see `protocol.messages`).

        A key that is known already keeps its task: its arguments are taken to be the same. Until the graph's last rows
        have come, everything in it counts as needed, since its dependents may still be on their way. What depends on a
        future that was cancelled meanwhile is lost with it.
        """
        graph = client.graphs.get(number)
        hold = graph is not None or not last
        if graph is None:
            graph = []
            if hold:
                client.graphs[number] = graph
        shared_functions = [self._function(blob) for blob in functions]
        shared_prefixes = [self._prefix(name) for name in prefixes]
        unwanted: list[TaskState] = []
        for cid, key, function, payload, dependencies, prefix, options in rows:
            ts = self.keys.get(key)
            new = ts is None or (ts.function is None and ts.state == RELEASED)
            if new:
                inputs: list[Any] = [graph[d] if d >= 0 else client.futures.get(-d) for d in dependencies or ()]
                if None in inputs:
                    ts = None
                else:
                    ts = ts or self._new_task(key, shared_prefixes[prefix])
                    ts.function = self._use(shared_functions[function])
                    ts.payload = join(payload) if type(payload) is tuple else payload
                    self._define(ts, inputs, priority, options)
            graph.append(ts)
            if ts is None:
                if cid:
                    self._tell(client, "lost", (cid, self._why_lost(client, key, dependencies)))
                continue
            if cid:
                self._want(client, cid, ts)
            if hold:
                ts.waiters += 1
                if new:
                    self._need(ts)
            elif not cid:
                unwanted.append(ts)
        if last and hold:
            self._close_graph(client, number)
        for ts in unwanted:
            if not ts.waiters and not ts.wants:
                self._discard(ts)
        for unused in shared_functions:  # all its tasks were known already
            if not unused.users:
                self._retire_function(unused)

    def _why_lost(self, client: ClientState, key: Key, dependencies: Iterable[int]) -> str:
        for dependency in dependencies:
            if (unknown := client.unknown.get(-dependency)) is not None:
                return f"its input {unknown!r} is neither in the graph nor on the cluster"
        return f"an input of {key!r} was cancelled, or cannot be computed"

    def _define(self, ts: TaskState, inputs: Sequence[TaskState], priority: int, raw: dict[str, Any] | None) -> None:
        """Give a new task its inputs, its options, and its place in the order."""
        if inputs:
            ts.dependencies = tuple(inputs)
            for dep in inputs:
                if dep.dependents is None:
                    dep.dependents = []
                dep.dependents.append(ts)
                dep.n_dependents += 1
        if raw:
            ts.options = Options.read(raw)
            priority += ts.options.priority
        # The id counts up; without a priority it is the very same object, a number less for each task.
        ts.priority = ts.id - max(-MAX_PRIORITY, min(MAX_PRIORITY, priority)) * (1 << 52) if priority else ts.id

    def _close_graph(self, client: ClientState, number: int) -> None:
        for ts in client.graphs.pop(number):
            if ts is None:
                continue
            ts.waiters -= 1
            if not ts.waiters and not ts.wants:
                self._discard(ts)

    def want(self, client: ClientState, rows: Iterable[tuple[int, Key]]) -> None:
        """The client holds futures of keys that it did not submit itself."""
        for cid, key in rows:
            ts = self.keys.get(key)
            if ts is None and self.adopting:
                ts = self._new_task(key, self._prefix("adopted"))
            if ts is None:
                client.unknown[cid] = key
                self._tell(client, "lost", (cid, f"no task or data is known by the key {key!r}"))
            else:
                self._want(client, cid, ts)

    def know(self, client: ClientState, rows: Iterable[tuple[int, Key, int, str | None, Serialized]]) -> None:
        """A client that comes back gives us the small results that it has; it wants them as before."""
        for cid, key, size, kind, value in rows:
            ts = self.keys.get(key)
            if ts is None:
                ts = self._new_task(key, self._prefix("adopted"))
            if ts.state == RELEASED and ts.function is None:
                ts.want(client, cid)
                client.futures[cid] = ts
                self._remember(ts, None, size, kind, join(value) if type(value) is tuple else value)
            else:
                self._want(client, cid, ts)

    def _want(self, client: ClientState, cid: int, ts: TaskState) -> None:
        if client.futures.get(cid) is not ts:  # a client that comes back wants the same again, to be told how it stands
            ts.want(client, cid)
            client.futures[cid] = ts
        if ts.state == MEMORY:
            self._tell(client, "finished", (cid, ts.nbytes, ts.type, ts.value))
        elif ts.state == ERRED:
            self._tell_failure(client, cid, ts)
        elif ts.state == RELEASED:
            self._need(ts)

    def release(self, client: ClientState, cids: Iterable[int]) -> None:
        """The client's futures of these numbers are gone."""
        for cid in cids:
            ts = client.futures.pop(cid, None)
            if ts is None:
                client.unknown.pop(cid, None)
                continue
            ts.unwant(client, cid)
            if not ts.wants and not ts.waiters:
                self._discard(ts)

    def cancel(self, client: ClientState, cids: Iterable[int], *, force: bool = False, reason: str = "") -> None:
        """Take the futures from this client, with `force` from every client, and stop what nobody else needs."""
        for ts in self.going(client, cids, force=force):
            for owner, number in ts.wanted:
                if force or owner is client:
                    self._tell(owner, "lost", (number, reason or "cancelled"))
                    self.release(owner, [number])

    def going(self, client: ClientState, cids: Iterable[int], *, force: bool) -> list[TaskState]:
        """What is cancelled with these: themselves and, if nobody else wants them, what still waits for them."""
        found = dict.fromkeys(ts for cid in cids if (ts := client.futures.get(cid)) is not None)
        stack = list(found)
        while stack:
            ts = stack.pop()
            if not force and any(owner is not client for owner in ts.wants):
                continue
            for dependent in ts.dependents or ():
                if dependent not in found and dependent.state in (WAITING, NO_WORKER, QUEUED, PROCESSING):
                    found[dependent] = None
                    stack.append(dependent)
        return list(found)

    def retry(self, client: ClientState, cids: Iterable[int]) -> None:
        """Run failed tasks again, from the ones that failed first."""
        failed = [ts for cid in cids if (ts := client.futures.get(cid)) is not None and ts.state == ERRED]
        stack, seen = list(failed), set(failed)
        while stack:
            for dep in stack.pop().dependencies:
                if dep.state == ERRED and dep not in seen:
                    seen.add(dep)
                    stack.append(dep)
        for ts in seen:
            self._enter(ts, RELEASED)
            ts.failure = None
            for owner, cid in ts.wanted:
                self._tell(owner, "pending", cid)
        for ts in failed:
            self._need(ts)
