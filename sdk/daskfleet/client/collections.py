"""dask's collections on the cluster: `Client.get`, `compute`, `persist`, and taking work back: `cancel`, `retry`.

What dask asks of a scheduler is little: an expression goes in, values or futures of its keys come out. Most of what is
here is about doing that in one pass over a graph that may have a million tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from daskfleet.client.garbage import paused_collection
from daskfleet.client.options import graph_options
from daskfleet.client.states import ERROR, FINISHED, PENDING, FutureState
from daskfleet.client.submitting import CHUNK, Submitting
from daskfleet.importing import Lazy
from daskfleet.protocol.messages import Key

if TYPE_CHECKING:
    from dask import base

    from daskfleet.client import delayed, encode, ordering
    from daskfleet.client import future as handles
else:
    base, delayed = Lazy("dask.base"), Lazy("daskfleet.client.delayed")
    encode, ordering = Lazy("daskfleet.client.encode"), Lazy("daskfleet.client.ordering")
    handles = Lazy("daskfleet.client.future")


class Collections(Submitting):
    """Collections and graphs."""

    def get(self, dsk: Any, keys: Any, workers: Any = None, sync: bool = True, **kwargs: Any) -> Any:
        """Compute a dask graph; dask calls this for ``collection.compute()``.

        Parameters
        ----------
        dsk
            A graph: a dict, a ``HighLevelGraph`` or an expression.
        keys
            A key, or lists of keys, nested as the result should be.
        sync
            Return the values; otherwise futures.
        **kwargs
            ``allow_other_workers``, ``resources``, ``retries``, ``priority`` and ``timeout`` as `submit` has them, for
            every task; ``direct`` and ``asynchronous`` as `gather` has them. What dask passes on besides says nothing.
        """
        flat = list(_flatten(keys))
        with paused_collection():
            futures = self._submit_graph(dsk, flat, **graph_options({**kwargs, "workers": workers}))
        by_key = {future.key: future for future in futures}
        packed = _pack_keys(keys, by_key)
        return (
            self.gather(packed, direct=kwargs.get("direct"), asynchronous=kwargs.get("asynchronous"))
            if sync
            else packed
        )

    def compute(
        self,
        collections: Any,
        sync: bool = False,
        optimize_graph: bool = True,
        workers: Any = None,
        allow_other_workers: bool = False,
        resources: Mapping[str, float] | None = None,
        retries: int = 0,
        priority: int = 0,
        fifo_timeout: str | float = "60s",
        actors: Any = None,
        traverse: bool = True,
        timeout: float | str | None = None,
    ) -> Any:
        """Futures of what ``dask.compute`` would return, without waiting; with `sync`, the values.

        Parameters
        ----------
        collections
            A dask collection, or a list, tuple or set of them (a list of futures then); whatever else is among them is
            returned as it is.
        optimize_graph
            False to compute the graph as it stands.
        workers, allow_other_workers, resources, retries, priority, fifo_timeout, timeout
            As `submit` has them, for every task.
        actors
            In difference from distributed for `submit` and `map` only.
        traverse
            Look for collections inside lists, tuples, sets and dicts among `collections`, too.
        """
        single = not isinstance(collections, (list, tuple, set, frozenset))
        items = [collections] if single else list(collections)
        if traverse:
            items = [_delayed(item) if isinstance(item, (list, tuple, set, dict)) else item for item in items]
        options = _options(workers, allow_other_workers, resources, retries, priority, actors, timeout)
        with paused_collection():
            futures = [
                self._compute_one(item, optimize_graph, options) if base.is_dask_collection(item) else item
                for item in items
            ]
        result = futures[0] if single else futures
        return self.gather(result) if sync else result

    def _compute_one(self, collection: Any, optimize_graph: bool, options: dict[str, Any]) -> handles.Future:
        """A future of one collection's final value: its finalising step is a task of its own."""
        from dask.base import collections_to_expr
        from dask.tokenize import tokenize

        expression = collections_to_expr([collection], optimize_graph=optimize_graph).finalize_compute()
        if optimize_graph:
            expression = expression.optimize()
        keys = list(_flatten(expression.__dask_keys__()))
        if len(keys) == 1:
            return self._submit_graph(expression, keys, **options)[0]
        futures = self._submit_graph(expression, keys, **options)
        return self.submit(_as_is, futures, key=f"finalize-{tokenize(keys)}")

    def persist(
        self,
        collections: Any,
        optimize_graph: bool = True,
        workers: Any = None,
        allow_other_workers: bool | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: int = 0,
        fifo_timeout: str | float = "60s",
        actors: Any = None,
        timeout: float | str | None = None,
    ) -> Any:
        """Collections like these whose data is being computed and will stay on the cluster.

        The parameters are `compute`'s.

        Raises
        ------
        TypeError
            Something is no dask collection.
        """
        single = not isinstance(collections, (list, tuple, set, frozenset))
        items = [collections] if single else list(collections)
        for item in items:
            if not base.is_dask_collection(item):
                raise TypeError(f"persist takes dask collections, not {type(item).__name__}")
        options = _options(workers, allow_other_workers, resources, retries, priority, actors, timeout)
        from dask.base import collections_to_expr

        with paused_collection():
            expression = collections_to_expr(items, optimize_graph=optimize_graph)
            if optimize_graph:
                expression = expression.optimize()
            keys = list(dict.fromkeys(_flatten(expression.__dask_keys__())))
            futures = {future.key: future for future in self._submit_graph(expression, keys, **options)}
        results = []
        for item, own_keys in zip(items, _keys_by_collection(expression, items), strict=True):
            rebuild, args = item.__dask_postpersist__()
            results.append(rebuild({key: futures[key] for key in _flatten(own_keys)}, *args))
        return results[0] if single else results

    def _submit_graph(
        self,
        dsk: Any,
        keys: Sequence[Key],
        *,
        priority: int = 0,
        **options: Any,
    ) -> list[handles.Future]:
        """Send a graph; futures of `keys`, in their order."""
        from dask._expr import Expr
        from dask.highlevelgraph import HighLevelGraph

        annotations: Mapping[str, Any] = {}
        if isinstance(dsk, Expr):
            dsk = delayed.faster(dsk)
            annotations = dsk.__dask_annotations__()
            dsk = dsk.__dask_graph__()
        elif isinstance(dsk, HighLevelGraph):
            annotations = {}
            dsk = dsk.to_dict()
        graph = encode.as_nodes(dict(dsk))
        _check(graph, keys, self._states)
        by_key = encode.annotations_by_key(annotations)
        wanted = set(keys)
        graph = encode.without_aliases(graph, lambda key: key in wanted or key in by_key or key in self._states)
        shared = {name: value for name, value in options.items() if value is not None}
        self._announce_span(shared)
        outside: list[handles.Future] = []  # held until the message is queued

        def number(key: Key) -> int:
            future = self._want(key)
            outside.append(future)
            return -future._state.cid

        encoder = encode.GraphEncoder(number)
        states: dict[Key, FutureState] = {}
        graph_number = next(self._graphs)
        rows: list[tuple[Any, ...]] = []
        sent = 0
        try:
            for key in ordering.in_order(graph):
                cid = 0
                if key in wanted:
                    states[key], new = self._state(key)
                    cid = states[key].cid if new else 0
                own = getattr(graph[key], "daskfleet_options", {})
                rows.append(encoder.row(cid, key, graph[key], {**shared, **by_key.get(key, {}), **own} or None))
                if len(rows) == CHUNK and sent + CHUNK < len(graph):
                    self._send(("tasks", graph_number, False, priority, *encoder.take(), rows))
                    sent += len(rows)
                    rows = []
        except BaseException:
            if sent:  # what was sent is needed until its graph is complete: now it is
                self._send(("tasks", graph_number, True, priority, [], [], []))
            raise
        self._send(("tasks", graph_number, True, priority, *encoder.take(), rows))
        return [handles.Future(states[key]) if key in states else self._want(key) for key in keys]

    def cancel(
        self,
        futures: Any,
        asynchronous: bool | None = None,
        force: bool = False,
        reason: str | None = None,
        msg: str | None = None,
    ) -> Any:
        """Do not compute these, unless somebody else wants them.

        What still waits for them goes with them, unless that, or what it waits for, is somebody else's too. What was
        made of them already stays, in difference from distributed.

        Parameters
        ----------
        futures
            A future, or a dask collection, or several.
        force
            Even if other clients want them; and what runs already is stopped. A task that cannot be stopped in its
            thread has its worker's process replaced, after the worker has handed over its data.
        reason, msg
            What whoever waits for them is told.
        """
        why = ": ".join(text for text in (reason, msg) if text)
        return self._sync(self._call, "cancel", list(self._found(futures)), force, why)

    def retry(self, futures: Any, asynchronous: bool | None = None) -> Any:
        """Compute these (futures, or collections) again after a failure, from the task that failed first."""
        return self._sync(self._retry, self._found(futures))

    async def _retry(self, found: dict[int, FutureState]) -> None:
        for state in found.values():
            if state.status == ERROR:
                state.status = PENDING
        await self._call("retry", list(found))

    def _found(self, futures: Any) -> dict[int, FutureState]:
        return {future._state.cid: future._state for future in self.futures_of(futures)}

    def normalize_collection(self, collection: Any) -> Any:
        """`collection` with what this client computes already in place of the tasks that would compute it again."""
        graph = dict(collection.__dask_graph__())
        known = {}
        for key in graph:
            reference = self._states.get(key)
            state = reference() if reference is not None else None
            if state is not None and state.status in (PENDING, FINISHED):
                known[key] = handles.Future(state)
        if not known:
            return collection
        rebuild, args = collection.__dask_postpersist__()
        return rebuild({**graph, **known}, *args)

    def futures_of(self, collections: Any) -> list[handles.Future]:
        """The futures inside persisted collections."""
        return futures_of(collections, self)


def futures_of(collections: Any, client: Any = None) -> list[handles.Future]:
    """The futures inside persisted collections, in no particular order, each once."""
    found: dict[Key, handles.Future] = {}
    stack = [collections]
    while stack:
        item = stack.pop()
        if isinstance(item, handles.Future):
            found[item.key] = item
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif base.is_dask_collection(item):
            stack.extend(dict(item.__dask_graph__()).values())
    return list(found.values())


def _delayed(value: Any) -> Any:
    from dask import delayed

    return delayed(value)


def _options(
    workers: Any,
    allow_other_workers: bool | None,
    resources: Mapping[str, float] | None,
    retries: int | None,
    priority: int,
    actors: Any,
    timeout: float | str | None,
) -> dict[str, Any]:
    if actors:
        raise ValueError(
            "actors= is for Client.submit and Client.map: submit the class, and use its proxy in the graph"
        )
    given = {"workers": workers, "allow_other_workers": allow_other_workers, "resources": resources}
    return graph_options({**given, "retries": retries, "priority": priority, "timeout": timeout})


def _as_is(value: Any) -> Any:
    return value


def keys_of(futures: Any) -> list[Key]:
    """The keys of a future, of several, or of a collection."""
    return [future.key for future in ([futures] if isinstance(futures, handles.Future) else futures_of(futures))]


def _check(graph: Mapping[Key, Any], keys: Sequence[Key], known: Mapping[Key, Any]) -> None:
    missing = [key for key in keys if key not in graph and key not in known]
    if missing:
        raise KeyError(
            f"the graph has no task for {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )


def _flatten(keys: Any) -> Iterator[Key]:
    if isinstance(keys, list):
        for key in keys:
            yield from _flatten(key)
    else:
        yield keys


def _pack_keys(keys: Any, by_key: Mapping[Key, handles.Future]) -> Any:
    if isinstance(keys, list):
        return [_pack_keys(key, by_key) for key in keys]
    return by_key[keys]


def _keys_by_collection(expression: Any, items: Sequence[Any]) -> list[Any]:
    keys = expression.__dask_keys__()
    return keys if len(keys) == len(items) else [item.__dask_keys__() for item in items]
