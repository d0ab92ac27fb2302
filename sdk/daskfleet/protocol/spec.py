"""The small language in which a task names its arguments.

A task is a function (serialised once and shared by its hash) and a pickle of its arguments. Where an argument is
another task's result the pickle holds a `Ref`, the position of that result among the task's dependencies: no keys, so
equal structure gives equal bytes, and no dask, so a worker can run a task of ours without importing it. Containers that
hold a `Ref` somewhere inside become `Build`; everything else is left alone and never walked again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class Ref:
    """The result of the task's dependency number `index`."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return Ref, (self.index,)

    def __repr__(self) -> str:
        return f"Ref({self.index})"


class Build:
    """``constructor(items)``: a list, tuple, set or dict (as a list of pairs) with references inside."""

    __slots__ = ("constructor", "items")

    def __init__(self, constructor: Callable[[Any], Any], items: list[Any]) -> None:
        self.constructor, self.items = constructor, items

    def __reduce__(self) -> tuple[Any, ...]:
        return Build, (self.constructor, self.items)


def resolve(argument: Any, values: Sequence[Any]) -> Any:
    """`argument` with every reference replaced by its value."""
    kind = type(argument)
    if kind is Ref:
        return values[argument.index]
    if kind is Build:
        return argument.constructor([resolve(item, values) for item in argument.items])
    return argument


def evaluate(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], values: Sequence[Any]) -> Any:
    """Run one task: `function` on its arguments, references resolved."""
    if values:
        args = tuple([resolve(argument, values) for argument in args])
        if kwargs:
            kwargs = {name: resolve(argument, values) for name, argument in kwargs.items()}
    return function(*args, **kwargs)
