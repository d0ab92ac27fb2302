"""Several calls run as one task, as dask's optimiser fuses them.

dask hands such a task over as a graph of its own, functions, keys and constants mixed, a kilobyte or more of pickle for
each task of a thousand that differ in nothing but a number. A `Program` is what they have in common: the functions and
how results flow from one to the next. It is pickled once and shared like any function; what is left of each task are
its constants and references, which are the program's arguments. Running it is a loop over a list; dask would order the
graph afresh each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: function, slots of the positional arguments, names and slots of the keywords, slots not needed afterwards
Step = tuple[Callable[..., Any], tuple[int, ...], tuple[tuple[str, int], ...], tuple[int, ...]]


class Program:
    """Calls in order. A slot holds a value: first the arguments, then the constants, then the result of each step."""

    __slots__ = ("__name__", "constants", "steps")

    def __init__(self, name: str, constants: tuple[Any, ...], steps: tuple[Step, ...]) -> None:
        self.__name__, self.constants, self.steps = name, constants, steps

    def __reduce__(self) -> tuple[Any, ...]:
        return Program, (self.__name__, self.constants, self.steps)

    def __call__(self, *arguments: Any) -> Any:
        slots: list[Any] = [*arguments, *self.constants]
        for function, args, kwargs, done in self.steps:
            values = [slots[i] for i in args]
            named = {name: slots[i] for name, i in kwargs}
            for i in done:
                slots[i] = None  # an intermediate may be large: it goes as soon as nothing needs it
            slots.append(function(*values, **named))
        return slots[-1]


def make_list(*items: Any) -> list[Any]:
    return list(items)


def make_tuple(*items: Any) -> tuple[Any, ...]:
    return items


def make_set(*items: Any) -> set[Any]:
    return set(items)


def make_dict(*items: Any) -> dict[Any, Any]:
    """From keys and values in turn."""
    return dict(zip(items[::2], items[1::2], strict=True))
