"""Spilling: nothing is lost, the least recently used goes first, faults cost only memory."""

import asyncio
import errno
import threading

import numpy
import pytest
from daskfleet.protocol.serialize import loads
from daskfleet.worker.memory import MemoryMonitor, Thresholds, resident_memory
from daskfleet.worker.spill import OnDisk, SpillBuffer, Spilling
from hypothesis import given, settings
from hypothesis import strategies as st


def value_of(stored):
    return stored.load() if isinstance(stored, OnDisk) else stored


def fill(buffer, sizes, ids, size=100):
    for id in ids:
        sizes[id] = size
        buffer[id] = bytes([id]) * size
    settle(buffer)


def settle(buffer):
    async def settle():
        await Spilling(buffer, lambda: None).settled()

    asyncio.run(settle())


@pytest.fixture
def sizes():
    return {}


@pytest.fixture
def buffer(tmp_path, sizes):
    return SpillBuffer(tmp_path, 300, sizes)


def test_least_recently_used_goes_first(buffer, sizes):
    fill(buffer, sizes, [1, 2, 3])
    assert buffer[1] == b"\1" * 100
    fill(buffer, sizes, [4])
    assert isinstance(buffer[2], OnDisk)
    assert buffer[2].load() == b"\2" * 100
    assert not isinstance(buffer[1], OnDisk)
    assert buffer.memory_bytes == 300


def test_deleting_removes_the_file(buffer, sizes, tmp_path):
    fill(buffer, sizes, range(10))
    assert len(list(tmp_path.iterdir())) == 7
    for id in list(buffer):
        del buffer[id]
    assert not list(tmp_path.iterdir())
    assert (buffer.memory_bytes, buffer.disk_bytes, len(buffer)) == (0, 0, 0)


def test_files_are_private(buffer, sizes, tmp_path):
    fill(buffer, sizes, range(5))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_arrays_come_back_writable_and_the_file_is_untouched(tmp_path):
    array = numpy.arange(100_000)
    buffer = SpillBuffer(tmp_path, 0, {1: array.nbytes})
    buffer[1] = array
    settle(buffer)
    first = buffer[1].load()
    first[:] = 0
    assert (buffer[1].load() == array).all()
    assert (loads(buffer[1].serialized()) == array).all()


def test_a_mapped_value_outlives_its_file(tmp_path):
    buffer = SpillBuffer(tmp_path, 0, {1: 800_000})
    buffer[1] = numpy.arange(100_000)
    settle(buffer)
    loaded = buffer[1].load()
    del buffer[1]
    assert loaded.sum() == numpy.arange(100_000).sum()


def test_what_cannot_be_pickled_stays_and_the_next_one_goes(buffer, sizes):
    sizes[1] = 100
    buffer[1] = threading.Lock()
    fill(buffer, sizes, [2, 3, 4])
    assert not isinstance(buffer[1], OnDisk)
    assert isinstance(buffer[2], OnDisk)
    del buffer[1]
    assert buffer.memory_bytes == 200


def test_a_full_disk_costs_memory_only(buffer, sizes, monkeypatch, caplog):
    def full(path, flags, mode=0o777):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("daskfleet.worker.spill.os.open", full)
        fill(buffer, sizes, range(10))
    assert buffer.memory_bytes == 1000
    assert caplog.text.count("No space left on device") == 1
    fill(buffer, sizes, [11])
    assert buffer.memory_bytes == 300


def test_max_spill(tmp_path, sizes):
    buffer = SpillBuffer(tmp_path, 0, sizes, max_spill=300)
    fill(buffer, sizes, range(5))
    assert buffer.disk_bytes <= 300
    assert len(buffer) == 5


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from("sgdmwe"), st.integers(0, 6), st.integers(0, 400)), max_size=40))
def test_it_is_a_mapping_also_while_it_is_written(tmp_path_factory, steps):
    sizes, model = {}, {}
    folder = tmp_path_factory.mktemp("spill")
    buffer, writing = SpillBuffer(folder, 500, sizes), None
    for step, id, size in steps:
        if step == "s":
            buffer.pop(id, None)
            sizes[id] = size
            buffer[id] = model[id] = bytes([id]) * size
        elif step == "d":
            assert (buffer.pop(id, None) is None) == (model.pop(id, None) is None)
        elif step == "m" and id in model:  # the worker comes to another scheduler, whose ids are others
            size, new = sizes[id], (id + 1) % 7
            moving = [buffer.pop(id)]
            buffer.pop(new, None)
            sizes[new], model[new] = size, model.pop(id)
            buffer[new] = moving.pop()
        elif step == "w" and writing is None:
            rows = buffer.oldest(max(size, 1))
            writing = rows, buffer.write(rows)
        elif step == "e" and writing is not None:
            buffer.moved(*writing)
            writing = None
        elif step == "g" and id in model:
            assert value_of(buffer[id]) == model[id]
        assert set(buffer) == set(model)
        assert buffer.memory_bytes == sum(sizes[id] for id in model if not isinstance(buffer[id], OnDisk))
    writing = None
    settle(buffer)
    assert {id: value_of(buffer[id]) for id in model} == model
    assert buffer.memory_bytes <= 500
    assert len(list(folder.iterdir())) == sum(isinstance(buffer[id], OnDisk) for id in model)


def test_monitor_spills_to_the_target_and_pauses_when_that_is_not_enough():
    monitor = MemoryMonitor(1000, Thresholds())
    assert monitor.excess(650) == 0
    assert monitor.excess(790) == 190
    assert MemoryMonitor(1000, Thresholds(target=None)).excess(790) == 90
    assert not monitor.pauses(790)
    assert monitor.pauses(810)
    assert not monitor.pauses(500)


def test_thresholds_can_be_switched_off():
    import dask

    with dask.config.set({"distributed.worker.memory.spill": False, "distributed.worker.memory.pause": 0.5}):
        thresholds = Thresholds.configured()
    assert thresholds == Thresholds(spill=None, pause=0.5)
    monitor = MemoryMonitor(100, thresholds)
    assert monitor.pauses(60)
    assert monitor.excess(99) == 0


def test_resident_memory_is_that_of_this_process():
    psutil = pytest.importorskip("psutil")
    assert resident_memory() == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
