"""Which pickles of functions are remembered: those that cannot be out of date."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest
from daskfleet.client.encode import encode_function
from daskfleet.protocol.serialize import loads


def define(source: str, **globals_: Any) -> Callable[..., Any]:
    """The function ``f`` of `source`, as if it had been typed into a program's main module."""
    names = {"__name__": "__main__", **globals_}
    exec(source, names)
    found: Callable[..., Any] = names["f"]
    return found


def call(function: Callable[..., Any], *args: Any) -> Any:
    """What it returns on the other side."""
    return loads(encode_function(function)[0])(*args)


@pytest.fixture
def pickled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything that is pickled meanwhile."""
    seen: list[Any] = []
    original = cloudpickle.dumps
    monkeypatch.setattr(
        cloudpickle, "dumps", lambda value, **options: (seen.append(value), original(value, **options))[1]
    )
    return seen


def test_what_cannot_change_is_pickled_once(pickled: list[Any]) -> None:
    f = define("def f(x: int, y=1): return [math.floor(x + y + z) for _ in '1']", math=math, z=2)
    assert call(f, 1) == call(f, 1) == [4]
    assert pickled == [f]


def test_what_has_changed_is_pickled_anew() -> None:
    f = define("def f(x, y=1): return (lambda: x + y + z)()", z=2)
    assert call(f, 1) == 4
    f.__globals__["z"] = 3
    assert call(f, 1) == 5
    f.__defaults__ = (2,)  # type: ignore[attr-defined]
    assert call(f, 1) == 6
    f.__code__ = define("def f(x, y=1): return 0").__code__  # type: ignore[attr-defined]
    assert call(f, 1) == 0
    f.__globals__["abs"] = 7
    f.__code__ = define("def f(x, y=1): return abs").__code__  # type: ignore[attr-defined]
    assert call(f, 1) == 7


def test_what_may_change_in_place_is_pickled_each_time() -> None:
    values = [1]
    by_global, by_default = define("def f(): return sum(values)", values=values), define("def f(v=[1]): return sum(v)")
    by_closure = define(
        "def make(values):\n    def f(): return sum(values)\n    return f\nf = make(values)", values=values
    )
    by_module = define("def f(): return made.up", made=types.ModuleType("made"))
    by_module.__globals__["made"].up = 1
    by_attribute = define("def f(): return f.n")
    by_attribute.n = 1  # type: ignore[attr-defined]
    changing = (by_global, by_default, by_closure, by_module, by_attribute)
    assert [call(f) for f in changing] == [1] * 5
    values.append(1)
    by_default.__defaults__[0].append(1)  # type: ignore[attr-defined]
    by_module.__globals__["made"].up = by_attribute.n = 2  # type: ignore[attr-defined]
    assert [call(f) for f in changing] == [2] * 5


def test_modules_by_value_are_pickled_each_time(pickled: list[Any]) -> None:
    f = define("def f(): return math.pi", math=math)
    cloudpickle.register_pickle_by_value(math)
    try:
        encode_function(f), encode_function(f)
    finally:
        cloudpickle.unregister_pickle_by_value(math)
    assert pickled.count(f) == 2
