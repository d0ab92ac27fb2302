"""dask is imported when it is needed, and then set up at once."""

import os
import subprocess
import sys

import pytest
from daskfleet import config
from daskfleet_operator.plan import tls


def run(code, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DASK")}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment | variables, capture_output=True, text=True, check=True
    ).stdout.strip()


SERVERS = (
    "import daskfleet.cli.worker, daskfleet.cli.scheduler, daskfleet.worker.process, daskfleet.scheduler.server, sys;"
)


def test_servers_do_without_dask():
    assert run(SERVERS + "print('dask' in sys.modules)") == "False"


def test_times_are_read_as_dask_reads_them_and_the_plain_ones_without_it():
    import dask.utils

    plain, others = ["60", "30s", " 1.5 ", "0.2s"], ["10 minutes", "500ms", "1h", "2 s", "1e3", "5 us"]
    for text in plain + others:
        assert config.parse_seconds(text) == dask.utils.parse_timedelta(text), text
    for text in ("soon", "1.2.3", "-"):
        with pytest.raises((KeyError, ValueError)):
            config.parse_seconds(text)
    code = (
        f"from daskfleet.config import parse_seconds as p; import sys; print([*map(p, {plain})], 'dask' in sys.modules)"
    )
    assert run(code) == "[60.0, 30.0, 1.5, 0.2] False"


@pytest.mark.parametrize(("text", "asked"), [("# a:\n#   b: 1\n", "False"), ("a:\n  b: 1\n", "True")])
def test_dask_is_asked_for_settings_only_where_there_are_any(tmp_path, text, asked):
    folder = tmp_path / ".config" / "dask"
    folder.mkdir(parents=True)
    (folder / "distributed.yaml").write_text(text)
    code = "import sys; from daskfleet import config; print('dask' in sys.modules or config.get('a.b') == 1)"
    assert run(code, HOME=str(tmp_path)) == asked


def test_what_the_operator_sets_in_its_pods_is_read_without_dask():
    texts = {variable: f"-----BEGIN {variable}" for variable in tls.SECRETS}
    code = """
import sys
from daskfleet import config
from daskfleet.security import Security
made = Security()
print(config.get("distributed.logging"), made.require_encryption, made.tls_worker_key, "dask" in sys.modules)
"""
    variables = {"DASK_SCHEDULER_ADDRESS": "tls://x:1", "DASK_WORKER_NAME": "w", **tls.SETTINGS, **texts}
    key = texts["DASK_DISTRIBUTED__COMM__TLS__WORKER__KEY"]
    assert run(code, HOME="/nonexistent", **variables) == f"{{}} True {key} False"
    assert run("import dask;" + code, HOME="/nonexistent", **variables) == f"{{}} True {key} True"


def test_a_client_is_there_without_dask():
    assert run("from daskfleet import Client; import sys; print('dask' in sys.modules)") == "False"


def test_a_client_that_was_there_before_dask_computes_its_collections():
    code = """
import asyncio, sys
from daskfleet import Client, Scheduler, Worker

async def main():
    async with Scheduler(port=0, dashboard_address=None) as scheduler:
        async with Worker(scheduler.address, nthreads=1), Client(scheduler.address, asynchronous=True) as client:
            assert "dask" not in sys.modules
            assert await client.submit(sum, [1, 2]) == 3
            import dask
            assert dask.config.get("scheduler").id == client.id
            assert not client._by_cid  # dask keeps an exception, and with it frames: no future may be in one
        assert dask.config.get("scheduler", None) is None

asyncio.run(asyncio.wait_for(main(), 180))
print("right")
"""
    assert run(code) == "right"


def test_what_a_function_that_imports_dask_works_with_is_let_go_of():
    code = """
import weakref, daskfleet.importing
class Large: pass
def compute():
    large = Large()
    import dask.array, dask.bag, dask.dataframe, dask.delayed, dask.widgets
    return weakref.ref(large)
print(compute()())
"""
    assert run(code) == "None"


@pytest.mark.parametrize("loaded", [False, True])
def test_a_function_runs_when_a_module_is_imported(loaded):
    code = (
        f"{'import colorsys;' if loaded else ''}"
        "from daskfleet.importing import when_imported; seen = []; when_imported('colorsys', lambda: seen.append(1));"
        "before = len(seen); import colorsys;"
        "print(before, seen, colorsys.rgb_to_hsv(0, 0, 0), colorsys.__spec__.loader)"
    )
    said = run(code)
    assert said.startswith(f"{int(loaded)} [1] (0.0, 0.0, 0)")
    assert "SourceFileLoader" in said


def test_a_module_that_does_not_exist_is_still_missing():
    code = (
        "from daskfleet.importing import when_imported; when_imported('no_such_module', print)\n"
        "try: import no_such_module\n"
        "except ModuleNotFoundError: print('missing')"
    )
    assert run(code) == "missing"


KEY = "distributed.worker.memory.pause"


def test_settings_come_from_dask_as_soon_as_there_are_any(tmp_path):
    code = f"from daskfleet import config; import sys; print(config.get('{KEY}', 0.8), 'dask' in sys.modules)"
    home = {"HOME": str(tmp_path)}
    assert run(code, **home) == "0.8 False"
    assert run(code, **home, DASK_SCHEDULER_ADDRESS="tcp://x:1") == "0.8 False"
    assert run(code, **home, DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE="0.5") == "0.5 True"
    folder = tmp_path / ".config" / "dask"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("distributed: {worker: {memory: {pause: 0.4}}}")
    assert run(code, **home) == "0.4 True"
    address = "from daskfleet import config; print(config.get('scheduler-address'))"
    assert run(address, HOME="/nonexistent", DASK_SCHEDULER_ADDRESS="tcp://x:1") == "tcp://x:1"


def test_a_part_and_its_package_are_imported_at_once_by_two_threads():
    # The package's import takes its time, and needs Python's own lock again after the other thread has got it.
    code = """
import sys, threading
from daskfleet.importing import when_imported
called = []
for name in ("dask", "dask.array"):
    when_imported(name, lambda name=name: called.append(name))
first = threading.Thread(target=__import__, args=("dask",), daemon=True)
first.start()
while "dask" not in sys.modules:
    pass
second = threading.Thread(target=__import__, args=("dask.array",), daemon=True)
second.start()
for thread in first, second:
    thread.join(30)
print(sorted(called))
"""
    assert run(code) == "['dask', 'dask.array']"


def test_what_a_worker_does_as_dask_is_imported_imports_nothing_of_ours():
    """Another thread may be importing that, and wait for dask: Python lets one of the two fail."""
    code = """
import sys
from daskfleet.importing import when_imported
from daskfleet.worker import process
before = set(sys.modules)
when_imported("dask", process.configure)
import dask
new = sorted(name for name in set(sys.modules) - before if name.startswith("daskfleet"))
print(new, dask.config.get("scheduler"), "daskfleet.client.client" in sys.modules)
"""
    assert run(code) == "[] <the current daskfleet client> False"
