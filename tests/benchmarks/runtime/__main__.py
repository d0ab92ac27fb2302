"""Runs every engine one after the other and prints the table.

usage: python -m tests.benchmarks.runtime [--engines daskfleet,pool] [--minutes N] [figure ...]

Peers live in environments of their own under the user's cache folder, made on first use. Figures: import up up30 map
submit chain tree big transfer array dataframe bag delayed graph loaded idle shuffle scheduler. An engine that is not
done in --minutes minutes is stopped; what it has said until then counts.

What was tried and did not help (the first four: 32 MiB between two processes on 2 cores):

* Passing a memfd: 0.4 GB/s mapped at once, 0.7 to 1.4 page by page; its pages are fresh each time, and that is dear.
* process_vm_readv into fresh memory: 1.0 GB/s, as a Unix socket or TCP with 0.5 to 1.1. (Into memory that is used again
  it takes a third of the processor time of a socket: that is what helped, see `daskfleet.comm.lending`.)
* Socket buffers of 0.2 to 4 MiB, also into memory that is used again: 3.8 to 4.9 GB/s at best, 1.5 to 2.7 as a median,
  within the noise of each other, by blocking calls as by epoll. On a busy machine the two ends take turns.
* Huge pages for what is received: within the noise.
* glibc's arenas for each thread with a higher mmap threshold: fast, but malloc_trim leaves 50 MB of an arena's end.
* The scheduler's garbage collector at a threshold of 50,000 and its start frozen: 0.3 of 8 µs a task, within the noise.
* Fixed malloc thresholds in the scheduler: 25 of 945 bytes a task. (What did: frames of one chunk each, so that no more
  of a submission is in memory decoded, pages in place of dicts for ids, one shared tuple for the client that wants it.)
* Reading an idle worker's memory by three system calls in place of nine: 0.12 to 0.16 % of a core, as before.
* Sending from the read callback saves a pass of the loop, 8 µs a hop. Not to clients over a socket: of 1,000 workers
  each would cause a frame of its own for each task.
* Moving a large graph to the collector's oldest generation unseen (freeze, unfreeze) before it is switched on again: a
  tenth of the time of 100,000 array pieces, but the cycles that dask.order leaves behind then stay in memory.
* A worker's idle thread that waits for the scheduler's words in place of the loop, which that socket was hidden from
  meanwhile (an epoll without events for it): 4 % of a lone submit and 13 % of a hop, for 120 lines on asyncio's inner
  parts.
* uvloop in all processes: nothing of a chain or a tree, up to 15 % of a lone submit, most of it for waking threads.
  (What did help a chain, by 7 % on a quiet machine and a third on a busy one: that threads which have run a task report
  by themselves, see `daskfleet.entering`.)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "daskfleet", "benchmarks")
HERE = Path(__file__).parent
PEERS = {
    "distributed": ("distributed==2026.8.0", ["distributed==2026.8.0", "dask[array,dataframe]==2026.8.0"]),
    "ray": ("ray==2.55.1", ["ray==2.55.1", "numpy"]),
}


def environment(engine: str) -> Path:
    """The Python of an engine's own environment."""
    if engine in ("daskfleet", "pool"):
        return Path(sys.executable)
    home = CACHE / engine
    python = home / "bin" / "python"
    if not (home / ".done").exists():
        print(f"making an environment for {engine} …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEERS[engine][1]], check=True)
        (home / ".done").touch()
    return python


def measure(engine: str, figures: list[str], seconds: float) -> dict[str, float]:
    """What an engine reaches, as far as it gets in that time."""
    print(f"{engine} …", flush=True)
    found: dict[str, float] = {}
    commands = [
        [environment(engine), HERE / "workloads.py", engine, *(name for name in figures if name != "scheduler")]
    ]
    if figures == ["scheduler"]:
        commands.clear()
    if engine == "daskfleet" and (not figures or "scheduler" in figures):
        commands.append([environment(engine), HERE / "scheduler_load.py"])
    for command in commands:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        timer = threading.Timer(seconds, end, (process,))
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                row = json.loads(line)
                found[row["figure"]] = row["value"]
                print(f"  {row['figure']}: {row['value']:,.4g}", flush=True)
        timer.cancel()
        if process.wait():
            print(f"{engine} ended with status {process.returncode}: its last figures are missing", flush=True)
    return found


def end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def limit() -> dict[str, float]:
    """The machine's own: four plain Python processes that exchange the same messages and do nothing else."""
    print("the limit …", flush=True)
    output = subprocess.run(
        [sys.executable, HERE / "limit.py"], stdout=subprocess.PIPE, text=True, check=True, timeout=300
    ).stdout
    found = {}
    for n, rate in re.findall(r"(\d+) tasks: ([\d,]+) a second", output):
        found[f"map+gather of {int(n):,}, tasks/s"] = float(rate.replace(",", ""))
    latency = re.search(r"one task and its result: ([\d.]+) ms", output)
    if latency:
        found["submit to result, ms"] = float(latency[1])
    return found


def imports() -> dict[str, float]:
    """The memory of a plain process that has imported what the rows of collections need."""
    code = "import dask.array, dask.bag, dask.dataframe, psutil; print(psutil.Process().memory_full_info().uss)"
    output = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    return {"worker after all that, MB private": float(output) / 1e6}


def show(results: dict[str, dict[str, float]]) -> None:
    engines = list(results)
    figures = list(dict.fromkeys(figure for rows in results.values() for figure in rows))
    figures = [figure for figure in figures if figure in results.get("daskfleet", {})] or figures
    width = max(map(len, figures))
    print("\n" + " " * width + "".join(f"{engine:>20}" for engine in engines))
    for figure in figures:
        ours = results.get("daskfleet", {}).get(figure)
        cells = []
        for engine in engines:
            value = results[engine].get(figure)
            if value is None:
                cells.append("-")
                continue
            ratio = f" ({value / ours:.2g}x)" if ours and engine != "daskfleet" else ""
            cells.append(f"{value:,.0f}{ratio}" if value >= 100 else f"{value:.3g}{ratio}")
        print(f"{figure:<{width}}" + "".join(f"{cell:>20}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="daskfleet,distributed,ray,pool,limit")
    parser.add_argument("--minutes", type=float, default=10, help="time for each engine")
    parser.add_argument("figures", nargs="*")
    arguments = parser.parse_args()
    results = {}
    for engine in arguments.engines.split(","):
        if engine == "limit":
            wanted = set(arguments.figures)
            results[engine] = {
                **(limit() if not wanted or {"map", "submit"} & wanted else {}),
                **(imports() if not wanted or "loaded" in wanted else {}),
            }
            continue
        results[engine] = measure(engine, arguments.figures, 60 * arguments.minutes)
    show(results)
    print(
        f"\npython -m tests.benchmarks.runtime · daskfleet {version('daskfleet')} · {PEERS['distributed'][0]} · "
        f"{PEERS['ray'][0]} · Python {platform.python_version()} · {os.cpu_count()} cores, {platform.machine()}"
    )


if __name__ == "__main__":
    main()
