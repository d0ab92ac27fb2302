"""Objects as bytes and back, what cannot be, and the language in which tasks name their arguments."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import tracemalloc

import cloudpickle
import numpy as np
import pytest
from daskfleet.protocol import serialize
from daskfleet.protocol.frames import OUT_OF_BAND, Raw
from daskfleet.protocol.serialize import dumps, dumps_by_value, join, loads, nbytes
from daskfleet.protocol.spec import Build, Ref, evaluate, resolve
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("n", [0, 10, 10_000])
@pytest.mark.parametrize("kind", ["C", "F", "strided", "reversed", "transposed view"])
def test_arrays_of_every_layout(n: int, kind: str) -> None:
    array = np.arange(4 * n, dtype="f8").reshape(2, -1)
    array = {
        "C": array,
        "F": np.asfortranarray(array),
        "strided": array[:, ::2],
        "reversed": array[::-1],
        "transposed view": array.T[1:],
    }[kind]
    again = loads(dumps(array))
    np.testing.assert_array_equal(again, array)
    if again.size:
        again[...] = 1  # tasks write into what they are given


def test_large_buffers_are_not_copied() -> None:
    array = np.zeros(1_000_000)
    parts = dumps(array)
    raw = [part for part in parts if type(part) is Raw]
    assert [np.shares_memory(array, np.frombuffer(part.buffer)) for part in raw] == [True]
    assert nbytes(parts) >= array.nbytes
    assert np.shares_memory(loads(parts), array)


@given(st.binary(max_size=100) | st.integers() | st.lists(st.text()))
def test_plain_values(value: object) -> None:
    assert loads(dumps(value)) == value


def test_what_came_off_the_wire_is_sent_on_as_it_is() -> None:
    value = b"x" * (2 * OUT_OF_BAND)
    received = tuple(memoryview(part.buffer) if type(part) is Raw else part for part in dumps(value))
    assert loads(join(received)) == value


@pytest.mark.parametrize("kind", ["bytes", "a list of bytes", "text"])
def test_memory_that_large_objects_take_on_their_way(kind: str) -> None:
    """What is sent is not copied where it need not be, and what is received only to where it stays."""
    piece = b"x" * (4 << 20)
    value = {"bytes": piece, "a list of bytes": [piece[:-n] for n in range(1, 4)], "text": piece.decode()}[kind]
    size = len(pickle.dumps(value))
    tracemalloc.start()
    try:
        parts = dumps(value)
        assert kind != "bytes" or tracemalloc.get_traced_memory()[1] < size / 10
        received = tuple(memoryview(bytearray(part.buffer)) if type(part) is Raw else part for part in parts)
        del parts
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        assert loads(join(received)) == value
        assert tracemalloc.get_traced_memory()[1] - before < (2.1 if kind == "text" else 1.1) * size
    finally:
        tracemalloc.stop()


def test_functions_of_main_travel_by_value() -> None:
    program = (
        "import sys; from daskfleet.protocol.serialize import dumps, dumps_by_value\n"
        "class Thing:\n    def __init__(self, x): self.x = x\n"
        "def double(x): return 2 * x\n"
        "sys.stdout.buffer.write(dumps((double, Thing(3))) + b'|||' + dumps_by_value(double))"
    )
    output = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, timeout=180).stdout
    both, alone = output.split(b"|||")
    double, thing = loads(both)
    assert double(thing.x) == 6
    assert loads(alone)(4) == 8


@pytest.mark.parametrize("dump", [dumps, dumps_by_value])
def test_what_cannot_be_pickled_is_named(dump) -> None:
    def holds_a_lock(lock=threading.Lock()):  # noqa: B008
        return lock

    with pytest.raises(TypeError, match=r"cannot pickle function .*holds_a_lock.*'_thread.lock'"):
        dump(holds_a_lock)
    with pytest.raises(TypeError, match=r"cannot pickle an object of type lock"):
        dump(threading.Lock())
    with pytest.raises(TypeError, match=r"cannot pickle an object of type list: .*lock"):
        dump([1, threading.Lock()])


def test_very_deep_objects_are_refused_and_not_fatal() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TypeError, match=r"cannot pickle an object of type list: .*recursion"):
        dumps(deep)


def test_references_are_found_wherever_the_client_puts_them() -> None:
    values = [10, 20]
    argument = Build(list, [Ref(0), Build(dict, [Build(tuple, ["k", Ref(1)])])])
    assert resolve(pickle.loads(pickle.dumps(argument)), values) == [10, {"k": 20}]
    assert resolve([Ref(0)], values)[0].index == 0  # what is not marked is never walked
    assert evaluate(dict, ((),), {"a": Ref(1)}, values) == {"a": 20}


def test_in_place_of_a_value_that_cannot_be_pickled_its_reader_gets_the_reason() -> None:
    with pytest.raises(TypeError, match="no bytes"):
        loads(serialize.refusal(TypeError("no bytes")))


def test_modules_that_the_user_registers_travel_by_value(monkeypatch):
    import types

    module = types.ModuleType("only_here")
    exec("def double(x):\n    return 2 * x", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    cloudpickle.register_pickle_by_value(module)
    try:
        blob = dumps(module.double)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    monkeypatch.delitem(sys.modules, "only_here")
    assert loads(blob)(4) == 8


TWO_THREADS = """
import pickle, sys, threading
from daskfleet.protocol import serialize

array = bytes.fromhex(sys.argv[1])
begin, errors = threading.Barrier(2), []

def enter(how):
    begin.wait()
    try:
        how()
    except BaseException as error:
        errors.append(repr(error))

threads = [threading.Thread(target=enter, args=[how]) for how in (
    lambda: serialize.loads(array), lambda: __import__("numpy").full)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not errors, errors
"""


def test_a_package_is_whole_for_every_thread_that_unpickles() -> None:
    """Python's import locks alone fail here nearly every time."""
    command = [sys.executable, "-c", TWO_THREADS, pickle.dumps(np.arange(3), 5).hex()]
    for _ in range(3):
        subprocess.run(command, check=True, timeout=180)
