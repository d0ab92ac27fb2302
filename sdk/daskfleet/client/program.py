"""From a node of a dask graph to a function and its arguments, with what tasks have in common in the function.

Whatever is callable counts as common, by identity: optimised graphs repeat the same function objects thousands of
times. Everything else is taken to differ from task to task and becomes an argument. Two nodes get the same `Program`
when their callables are the same objects and their results flow in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import dask  # noqa: F401  the package before its parts (`daskfleet.importing.Lazy`)
from dask._task_spec import (
    Alias,
    DataNode,
    Dict,
    GraphNode,
    List,
    NestedContainer,
    Set,
    Task,
    TaskRef,
    Tuple,
    _execute_subgraph,
    _identity_cast,
)

from daskfleet.protocol.program import Program, Step, make_dict, make_list, make_set, make_tuple

_BUILDERS: dict[Any, Callable[..., Any]] = {
    List: make_list,
    Tuple: make_tuple,
    Set: make_set,
    Dict: make_dict,
    list: make_list,
    tuple: make_tuple,
    set: make_set,
}
_UNIQUE = (type(None), bool)


def is_simple(task: Task) -> bool:
    """Whether the task is one call on data and other tasks' results, with nothing in its arguments worth sharing."""
    return task.func is not _execute_subgraph and not any(
        isinstance(value, (Task, DataNode)) or (callable(value) and not isinstance(value, TaskRef | GraphNode))
        for value in (*task.args, *task.kwargs.values())
    )


class Compiler:
    """Compiles tasks and remembers the programs, for one graph: identities hold for as long as the graph lives."""

    def __init__(self) -> None:
        self._programs: dict[Any, Program] = {}

    def compile(self, task: Task) -> tuple[Program, list[Any]]:
        """The program of `task`, and its arguments: data, and a `TaskRef` for each result it depends on."""
        flow = _Flow()
        flow.node(task, {})
        signature = (tuple(map(id, flow.constants)), tuple(flow.wiring), len(flow.arguments))
        program = self._programs.get(signature)
        if program is None:
            program = self._programs[signature] = flow.program(getattr(task.func, "__name__", "task"))
        return program, flow.arguments


class _Flow:
    """One task taken apart.

    Slots are numbered as they are met: ``("a", i)`` argument, ``("c", i)`` constant, ``("s", i)`` step.
    """

    def __init__(self) -> None:
        self.arguments: list[Any] = []
        self.constants: list[Any] = []
        self.wiring: list[tuple[Any, ...]] = []
        self._functions: list[Callable[..., Any]] = []
        self._outside: dict[Any, tuple[str, int]] = {}
        self._shared: dict[int, tuple[str, int]] = {}

    def node(self, node: Any, scope: Mapping[Any, tuple[str, int]]) -> tuple[str, int]:
        """The slot of a node's value; `scope` are the slots of the keys around it."""
        if isinstance(node, (TaskRef, Alias)):
            key = node.key if isinstance(node, TaskRef) else node.target
            return scope[key] if key in scope else self._reference(key)
        if isinstance(node, DataNode):
            return self._argument(node.value)
        if not isinstance(node, Task):
            return self._constant(node) if callable(node) or isinstance(node, _UNIQUE) else self._argument(node)
        if node.func is _execute_subgraph:
            return self._subgraph(node.args, scope)
        args = [self.node(value, scope) for value in node.args]
        if isinstance(node, NestedContainer):
            return self._step(_BUILDERS[type(node)], args, [])
        if node.func is _identity_cast and node.kwargs.get("typ") in _BUILDERS:
            return self._step(_BUILDERS[node.kwargs["typ"]], args, [])
        kwargs = [(name, self.node(value, scope)) for name, value in node.kwargs.items()]
        return self._step(node.func, args, kwargs)

    def _subgraph(self, args: tuple[Any, ...], scope: Mapping[Any, tuple[str, int]]) -> tuple[str, int]:
        graph, out, names, *values = args
        inner = {name: self.node(value, scope) for name, value in zip(names, values, strict=True)}
        for key in _in_order(graph, out, inner):
            inner[key] = self.node(graph[key], inner)
        return inner[out]

    def _reference(self, key: Any) -> tuple[str, int]:
        slot = self._outside.get(key)
        if slot is None:
            slot = self._outside[key] = self._argument(TaskRef(key))
        return slot

    def _argument(self, value: Any) -> tuple[str, int]:
        self.arguments.append(value)
        return "a", len(self.arguments) - 1

    def _constant(self, value: Any) -> tuple[str, int]:
        slot = self._shared.get(id(value))
        if slot is None:
            self.constants.append(value)
            slot = self._shared[id(value)] = "c", len(self.constants) - 1
        return slot

    def _step(
        self, function: Callable[..., Any], args: list[tuple[str, int]], kwargs: list[tuple[str, tuple[str, int]]]
    ) -> tuple[str, int]:
        self.wiring.append((id(function), tuple(args), tuple(kwargs)))
        self._functions.append(function)
        return "s", len(self.wiring) - 1

    def program(self, name: str) -> Program:
        offsets = {"a": 0, "c": len(self.arguments), "s": len(self.arguments) + len(self.constants)}

        def number(slot: tuple[str, int]) -> int:
            return offsets[slot[0]] + slot[1]

        used: set[int] = set()
        steps: list[Step] = []
        for function, (_, args, kwargs) in zip(reversed(self._functions), reversed(self.wiring), strict=True):
            positional = tuple(map(number, args))
            named = tuple((key, number(slot)) for key, slot in kwargs)
            needed = {*positional, *(slot for _, slot in named)}
            steps.append((function, positional, named, tuple(needed - used)))
            used |= needed
        return Program(name, tuple(self.constants), tuple(reversed(steps)))


def _in_order(graph: Mapping[Any, GraphNode], out: Any, given: Iterable[Any]) -> list[Any]:
    """The keys that `out` needs, each after those it needs itself; without recursion, since chains may be long."""
    done, ordered = set(given), []
    stack = [out]
    while stack:
        key = stack[-1]
        missing = () if key in done else [dep for dep in graph[key].dependencies if dep in graph and dep not in done]
        if missing:
            stack.extend(missing)
            continue
        stack.pop()
        if key not in done:
            done.add(key)
            ordered.append(key)
    return ordered
