"""Calls and dask graphs as rows of a ``tasks`` message. No I/O.

Here the client pays for what the scheduler then gets for nothing: tasks that are opaque bytes. So the cost of a task is
decided here, and three habits keep it at a few microseconds: a function is pickled once per submission and not once per
task; what fused tasks have in common is a function as well (`program`), so that arguments are mere data; and arguments
of plain types are not searched for futures.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from hashlib import blake2b
from operator import is_
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import dask  # noqa: F401  the package before its parts (`daskfleet.importing.Lazy`)
from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef, convert_legacy_graph

from daskfleet.client.program import Compiler, is_simple
from daskfleet.protocol.messages import Key
from daskfleet.protocol.serialize import PROTOCOL, Serialized, dumps, dumps_by_value
from daskfleet.protocol.spec import Build, Ref

#: Types whose values hold no futures and whose `repr` tells any two of them apart.
PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})
_CONTAINERS = (list, tuple, set, frozenset, dict)


def identity(value: Any) -> Any:
    """The task of data and of aliases."""
    return value


class Arguments:
    """Collects the dependencies of one call while its arguments are rewritten."""

    __slots__ = ("dependencies", "index")

    def __init__(self) -> None:
        self.index: dict[Any, int] = {}
        self.dependencies: list[Any] = []

    def ref(self, future: TaskRef) -> Ref:
        position = self.index.setdefault(future.key, len(self.index))
        if position == len(self.dependencies):
            self.dependencies.append(future)
        return Ref(position)

    def pack(self, value: Any) -> Any:
        """`value` with futures replaced by references, in plain containers at any depth too."""
        kind = type(value)
        if kind in PLAIN:
            return value
        if isinstance(value, TaskRef):
            return self.ref(value)
        if kind not in _CONTAINERS:
            return value
        before = len(self.dependencies), len(self.index)
        if kind is dict:
            items = [(self.pack(key), self.pack(item)) for key, item in value.items()]
            if _has_spec(item for pair in items for item in pair):
                return Build(dict, [Build(tuple, list(pair)) for pair in items])
            return value
        items = [self.pack(item) for item in value]
        if (len(self.dependencies), len(self.index)) != before or _has_spec(items):
            return Build(kind, items)
        return value


def _has_spec(items: Iterable[Any]) -> bool:
    return any(type(item) in (Ref, Build) for item in items)


def encode_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Serialized, list[Any]]:
    """The payload of ``function(*args, **kwargs)`` and the futures it depends on.

    Raises
    ------
    TypeError
        An argument cannot be pickled.
    """
    if all(type(value) in PLAIN for value in args) and not kwargs:
        return pickle.dumps((args, kwargs), PROTOCOL), []
    arguments = Arguments()
    packed = tuple([arguments.pack(value) for value in args])
    packed_kwargs = {name: arguments.pack(value) for name, value in kwargs.items()}
    return dumps((packed, packed_kwargs)), arguments.dependencies


# Functions and keys -------------------------------------------------------------------------------------------------

_by_reference: dict[Any, tuple[bytes, bytes]] = {}
_by_value: WeakKeyDictionary[Any, tuple[tuple[Any, ...], tuple[bytes, bytes]]] = WeakKeyDictionary()


def encode_function(function: Callable[..., Any]) -> tuple[bytes, bytes]:
    """A function's pickle and a digest of it.

    What can be imported on the other side is remembered. What is stored by value is pickled anew each time, since the
    globals and closures it captures may have changed, unless it captures only what cannot (`constant_parts`).
    """
    try:
        known = _by_reference.get(function)
    except TypeError:  # not hashable
        known = None
    if known is not None:
        return known
    parts = constant_parts(function)
    if parts is not None:
        earlier = _by_value.get(function)
        if earlier is not None and len(earlier[0]) == len(parts) and all(map(is_, earlier[0], parts)):
            return earlier[1]
    blob = dumps_by_value(function)
    encoded = blob, blake2b(blob, digest_size=16).digest()
    if parts is not None and b"cloudpickle" in blob:
        _by_value[function] = parts, encoded
    elif isinstance(function, Hashable) and b"cloudpickle" not in blob and not isinstance(function, partial):
        if len(_by_reference) > 1000:
            _by_reference.clear()
        _by_reference[function] = encoded
    return encoded


def constant_parts(function: Any) -> tuple[Any, ...] | None:
    """What the pickle of a plain function says, if none of it can change in place: its code and defaults, and the
    modules and plain values among the globals that it may use. None for any other function.

    Packages do not count as constant: cloudpickle stores which of their parts are imported.
    """
    if type(function) is not FunctionType or function.__closure__ or function.__dict__ or function.__kwdefaults__:
        return None
    cloudpickle = sys.modules.get("cloudpickle")
    if cloudpickle is not None and cloudpickle.list_registry_pickle_by_value():  # then modules are values, too
        return None
    parts = [*(function.__defaults__ or ()), function.__name__, function.__doc__]
    codes, names = [function.__code__], function.__globals__
    while codes:
        code = codes.pop()
        parts += [names[name] for name in code.co_names if name in names]
        codes += [constant for constant in code.co_consts if type(constant) is CodeType]
    for part in parts:
        if type(part) not in PLAIN and (
            type(part) is not ModuleType or hasattr(part, "__path__") or sys.modules.get(part.__name__) is not part
        ):
            return None
    return function.__code__, *parts, *function.__annotations__.values()


def function_name(function: Callable[..., Any]) -> str:
    """What a function's tasks are called."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    return "lambda" if name == "<lambda>" else str(name)


def token(function_digest: bytes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """A digest of a call: equal for equal function and arguments, as far as dask can tell arguments apart."""
    digest = blake2b(function_digest, digest_size=16)
    if not kwargs and all(type(value) in PLAIN for value in args):
        digest.update(repr(args).encode())
    else:
        from dask.tokenize import tokenize

        digest.update(tokenize(args, kwargs).encode())
    return digest.hexdigest()


# Graphs -------------------------------------------------------------------------------------------------------------


class GraphEncoder:
    """Turns a graph's nodes into rows, given in topological order.

    Parameters
    ----------
    outside
        Gives the number (``-cid``) of a dependency that is not in the graph: a future's.
    """

    def __init__(self, outside: Callable[[Key], int]) -> None:
        self._outside = outside
        self._positions: dict[Key, int] = {}
        self._compiler = Compiler()
        self._blobs: dict[int, tuple[Any, bytes]] = {}  # by identity, with the function to keep that valid
        self._functions: dict[bytes, int] = {}
        self._prefixes: dict[str, int] = {}

    def take(self) -> tuple[list[bytes], list[str]]:
        """The functions and prefixes that the rows since the last call refer to by their index."""
        taken = list(self._functions), list(self._prefixes)
        self._functions, self._prefixes = {}, {}
        return taken

    def row(self, cid: int, key: Key, node: GraphNode, options: dict[str, Any] | None) -> tuple[Any, ...]:
        """The next node's row."""
        arguments = Arguments()
        function: Callable[..., Any]
        packed: Any
        if isinstance(node, Alias):
            function, packed = identity, ((arguments.ref(TaskRef(node.target)),), {})
        elif isinstance(node, DataNode):
            function, packed = identity, ((node.value,), {})
        elif isinstance(node, Task):
            args: Iterable[Any]
            if is_simple(node):
                function, args, kwargs = node.func, node.args, node.kwargs
            else:
                function, args = self._compiler.compile(node)
                kwargs = {}
            packed = (
                tuple([_pack(value, arguments) for value in args]),
                {name: _pack(value, arguments) for name, value in kwargs.items()},
            )
        else:
            raise TypeError(f"{key!r}: a graph holds tasks, aliases and data, not {type(node).__name__}")
        try:
            payload = dumps(packed)
            function_index = self._function(function)
        except TypeError as error:
            raise TypeError(f"task {key!r}: {error}") from error
        positions = self._positions
        dependencies = [
            positions[ref.key] if ref.key in positions else self._outside(ref.key) for ref in arguments.dependencies
        ]
        positions[key] = len(positions)
        return cid, key, function_index, payload, dependencies or None, self._prefix(key), options

    def _function(self, function: Callable[..., Any]) -> int:
        known = self._blobs.get(id(function))
        if known is None:
            known = self._blobs[id(function)] = function, encode_function(function)[0]
        return self._functions.setdefault(known[1], len(self._functions))

    def _prefix(self, key: Key) -> int:
        name = key if isinstance(key, str) else key[0] if isinstance(key, tuple) and key else key
        return self._prefixes.setdefault(split(str(name)), len(self._prefixes))


def split(name: str) -> str:
    """The part of a key that says what kind of task it is: ``"sum-3f2a…"`` is a ``"sum"``."""
    from dask.utils import key_split

    return str(key_split(name))


def _pack(value: Any, arguments: Arguments) -> Any:
    if isinstance(value, TaskRef):
        return arguments.ref(value)
    return arguments.ref(TaskRef(value.target)) if isinstance(value, Alias) else value


def as_nodes(graph: Mapping[Key, Any]) -> dict[Key, GraphNode]:
    """A graph of dask's nodes alone: legacy tuples are converted, and aliases of a key to itself (what `persist` leaves
    behind) are dropped, so that the key counts as one from outside."""
    if all(isinstance(node, GraphNode) for node in graph.values()):
        return {key: node for key, node in graph.items() if not (isinstance(node, Alias) and node.target == key)}
    nodes: dict[Key, GraphNode] = convert_legacy_graph(graph)
    return nodes


def without_aliases(graph: Mapping[Key, GraphNode], kept: Callable[[Key], bool]) -> dict[Key, GraphNode]:
    """`graph` with tasks in the place of their aliases, where nothing else refers to them: dask leaves such a pair for
    each group of tasks that it fuses. What is `kept` stays under its key."""
    users = {node.target: 0 for node in graph.values() if type(node) is Alias and not kept(node.target)}
    if not users:
        return dict(graph)
    for node in graph.values():
        for key in node.dependencies:
            if key in users:
                users[key] += 1
    result: dict[Key, GraphNode] = {}
    for key, node in graph.items():
        if users.get(key) == 1:
            continue
        while type(node) is Alias and users.get(node.target) == 1 and node.target in graph:
            node = graph[node.target]
        result[key] = node
    return result


def annotations_by_key(annotations: Mapping[str, Mapping[Key, Any]]) -> dict[Key, dict[str, Any]]:
    """dask's ``{"retries": {key: 3}}`` the other way round, with only what the scheduler understands."""
    options: dict[Key, dict[str, Any]] = {}
    for name in ("priority", "workers", "retries", "resources", "allow_other_workers", "timeout"):
        for key, value in annotations.get(name, {}).items():
            if name == "workers" and isinstance(value, str):
                value = [value]
            options.setdefault(key, {})[name] = value
    return options
