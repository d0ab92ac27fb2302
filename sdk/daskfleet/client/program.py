"""From a node of a dask graph to a function and its arguments, with what tasks have in common in the function.

Whatever is callable counts as common, by identity: optimised graphs repeat the same function objects thousands of
times. Everything else is taken to differ from task to task and becomes an argument. Two nodes get the same `Program`
when their callables are the same objects and their results flow in the same way.

The tasks that dask fuses from one blockwise layer share the very object that holds their steps, and differ in what goes
in: such a graph is taken apart once (`_Template`), for half of the time that a task of 100,000 takes here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Template:
    """Fused steps taken apart: a program of what goes in, followed by the arguments that are always the same."""

    out: Any
    names: tuple[Any, ...]
    program: Program
    arguments: list[Any]


class Compiler:
    """Compiles tasks and remembers the programs, for one graph: identities hold for as long as the graph lives."""

    def __init__(self) -> None:
        self._programs: dict[Any, Program] = {}
        self._templates: dict[int, _Template | None] = {}  # None for steps that were seen in one task so far

    def compile(self, task: Task) -> tuple[Program, list[Any]]:
        """The program of `task`, and its arguments: data, and a `TaskRef` for each result it depends on."""
        if task.func is _execute_subgraph and (compiled := self._by_template(task)) is not None:
            return compiled
        flow = _Flow()
        flow.node(task, {})
        return self._program(flow, task), flow.arguments

    def _program(self, flow: _Flow, task: Task) -> Program:
        signature = (tuple(map(id, flow.constants)), tuple(flow.wiring), len(flow.arguments))
        program = self._programs.get(signature)
        if program is None:
            program = self._programs[signature] = flow.program(getattr(task.func, "__name__", "task"))
        return program

    def _by_template(self, task: Task) -> tuple[Program, list[Any]] | None:
        """The same for fused steps, if other tasks consist of these, too, and nothing but leaves goes in."""
        graph, out, names, *values = task.args
        identity = id(graph)
        if identity not in self._templates:
            self._templates[identity] = None
            return None
        given = _leaves(values)
        if given is None:
            return None
        template = self._templates[identity]
        if template is None or template.out != out or template.names != names:
            flow = _Flow()
            flow.steps(graph, out, {name: flow.argument(None) for name in names})
            own = flow.arguments[len(names) :]
            template = self._templates[identity] = _Template(out, names, self._program(flow, task), own)
        return template.program, given + template.arguments


def _leaves(values: Iterable[Any]) -> list[Any] | None:
    """Values as arguments, if each is data or a reference."""
    leaves = []
    for value in values:
        if type(value) is DataNode:
            leaves.append(value.value)
        elif type(value) is Alias:
            leaves.append(TaskRef(value.target))
        elif isinstance(value, TaskRef) or not (isinstance(value, GraphNode) or callable(value)):
            leaves.append(value)
        else:
            return None
    return leaves


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
            return self.argument(node.value)
        if not isinstance(node, Task):
            return self._constant(node) if callable(node) or isinstance(node, _UNIQUE) else self.argument(node)
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
        return self.steps(
            graph, out, {name: self.node(value, scope) for name, value in zip(names, values, strict=True)}
        )

    def steps(self, graph: Mapping[Any, GraphNode], out: Any, inner: dict[Any, tuple[str, int]]) -> tuple[str, int]:
        """The slot of `out`; `inner` are the slots of what goes in."""
        for key in _in_order(graph, out, inner):
            inner[key] = self.node(graph[key], inner)
        return inner[out]

    def _reference(self, key: Any) -> tuple[str, int]:
        slot = self._outside.get(key)
        if slot is None:
            slot = self._outside[key] = self.argument(TaskRef(key))
        return slot

    def argument(self, value: Any) -> tuple[str, int]:
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
