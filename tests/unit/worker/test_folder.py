"""What a worker's folder is worth when the worker is killed: the next one removes it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import daskfleet.worker.folder as folders
from daskfleet import Nanny, Scheduler, Worker
from daskfleet.worker import nanny as nannies
from daskfleet.worker.folder import LOCK, PREFIX, Folder, remove_if_dead, share


def test_it_is_private_and_goes_with_its_owner(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "new" / "parent"))
    assert folder.path.parent == tmp_path / "new" / "parent" and folder.path.name.startswith(PREFIX)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "spilled").write_bytes(b"data")
    folder.remove()
    folder.remove()
    assert not folder.path.exists()
    path = Folder(str(tmp_path)).path
    gc.collect()
    assert not path.exists(), "even if nobody has said that it is no longer needed"


def test_what_a_killed_worker_leaves_is_removed_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    program = (
        "import os, sys, subprocess\n"
        "from daskfleet.worker.folder import Folder\n"
        "folder = Folder(sys.argv[1])\n"
        "(folder.path / 'spilled').mkdir()\n"
        "print(folder.path, flush=True)\n"
        "subprocess.Popen(['sleep', '9'], stdout=-3, stderr=-3)  # a task's, which outlives it\n"
        "os.kill(os.getpid(), 9)\n"
    )
    run = lambda: subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)  # noqa: E731
    dead = Path(run().stdout.strip())
    elsewhere = Path(run().stdout.strip())
    (elsewhere / LOCK).write_text("another host")
    living, ours = Folder(str(tmp_path)), Folder(str(tmp_path))
    (tmp_path / f"{PREFIX}by-hand").mkdir()
    assert dead.is_dir()
    ours.clean_up_after_others()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {living.path.name, ours.path.name, elsewhere.name, f"{PREFIX}by-hand"}
    monkeypatch.setattr(folders.fcntl, "flock", _no_locks)
    unlocked = Folder(str(tmp_path))
    folders._cleaned.clear()
    unlocked.clean_up_after_others()
    assert living.path.exists() and unlocked.path.exists(), "without locks nothing is taken for abandoned"


def _no_locks(*_: object) -> None:
    raise OSError("no locks available")


def test_a_forked_child_removes_nothing(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    if (pid := os.fork()) == 0:
        folder.remove()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert folder.path.exists()


def test_a_dead_ones_folder_is_taken_over_unless_it_is_being_removed(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from daskfleet.worker.folder import Folder\n"
        "folder = Folder(sys.argv[1])\n"
        "(folder.path / 'sub').mkdir()\n"
        "for name in ('one.pieces', 'two.pieces.part', '3.spill'): (folder.path / name).touch()\n"
        "print(folder.path, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    said = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True).stdout
    dead = Path(said.strip())
    kept = share(dead)
    assert kept is not None, "as the nanny does, while the worker lives"
    other = Folder(str(tmp_path))
    other.clean_up_after_others()
    assert not remove_if_dead(dead) and dead.exists()
    heir = Folder(str(tmp_path), str(dead), keep=(".pieces",))
    os.close(kept)
    assert heir.path == dead and {path.name for path in dead.iterdir()} == {LOCK, "one.pieces"}
    assert not remove_if_dead(dead)
    removing = os.open(other.path / LOCK, os.O_RDWR)
    folders.fcntl.flock(other._lock, folders.fcntl.LOCK_UN)
    folders.fcntl.flock(removing, folders.fcntl.LOCK_EX)
    assert share(other.path) is None and Folder(str(tmp_path), str(other.path)).path != other.path
    os.close(removing)
    heir.remove()
    assert not dead.exists()
    assert share(dead) is None and Folder(str(tmp_path), str(dead)).path != dead


async def test_a_worker_removes_what_the_dead_have_left_beside_it_and_its_own_when_it_closes(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from daskfleet.worker.folder import Folder\n"
        "folder = Folder(sys.argv[1])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program, str(tmp_path)])
    (dead,) = tmp_path.iterdir()
    async with (
        Scheduler(port=0, dashboard_address=None) as scheduler,
        Worker(scheduler.address, nthreads=1, local_directory=str(tmp_path)) as worker,
        asyncio.timeout(90),
    ):
        assert Path(worker.local_directory).parent == tmp_path
        while dead.exists():
            await asyncio.sleep(0.01)
        assert list(tmp_path.iterdir()) == [Path(worker.local_directory)]
        await worker.close()
        assert not list(tmp_path.iterdir())


async def test_a_killed_workers_folder_is_its_nannys_until_that_ends(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(nannies, "BACKOFF", (60.0, 60.0))  # the next worker does not start
    async with Scheduler(port=0, dashboard_address=None) as scheduler:
        async with Nanny(scheduler.address, nthreads=1, local_directory=str(tmp_path)) as nanny:
            folder = Path(nanny.options["predecessors_folder"])
            (folder / "spilled").write_bytes(b"data")
            assert folder.parent == tmp_path and nanny.pid is not None
            os.kill(nanny.pid, signal.SIGKILL)
            async with asyncio.timeout(90):
                while not nanny.deaths:
                    await asyncio.sleep(0.01)
            Folder(str(tmp_path)).clean_up_after_others()
            assert not remove_if_dead(folder) and (folder / "spilled").exists()
        assert not folder.exists()
