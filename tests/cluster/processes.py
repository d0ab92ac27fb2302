"""Background processes that outlive the command that started them, and are ended by it alone.

A process is known by its id *and* its start time, written down when it is started: an id that the kernel has given to
somebody else since then is never signalled.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from .progress import ClusterError


def started_at(pid: int) -> str | None:
    """The start time of a live process in clock ticks since boot; None when it is gone or a zombie."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else rest[18]


class Processes:
    """The background processes recorded in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, name: str, command: Sequence[str | os.PathLike[str]], cwd: Path) -> None:
        """Start ``command`` in a process group of its own, its output in ``NAME.log``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        record = {"pid": process.pid, "started": started_at(process.pid)}
        (self.folder / f"{name}.json").write_text(json.dumps(record))

    def alive(self) -> dict[str, bool]:
        """Every recorded process by name, and whether it runs."""
        return {path.stem: self._pid(path) is not None for path in sorted(self.folder.glob("*.json"))}

    def stop(self, names: Sequence[str], grace: float) -> None:
        """End the named processes with their groups: SIGTERM, then SIGKILL after ``grace`` seconds."""
        paths = [self.folder / f"{name}.json" for name in names]
        deadline = time.monotonic() + grace
        for sent in (signal.SIGTERM, signal.SIGKILL):
            while any(self._pid(path) for path in paths):
                for path in paths:
                    pid = self._pid(path)
                    if pid is not None:
                        os.killpg(pid, sent)
                if sent == signal.SIGKILL or time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        deadline = time.monotonic() + 10
        for path in paths:
            while self._pid(path) is not None:
                if time.monotonic() > deadline:
                    raise ClusterError(f"process {self._pid(path)} ({path.stem}) does not end, even by SIGKILL")
                time.sleep(0.02)
            path.unlink(missing_ok=True)

    def log(self, name: str, lines: int = 8) -> str:
        """The end of what a process said."""
        path = self.folder / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    @staticmethod
    def _pid(path: Path) -> int | None:
        if not path.exists():
            return None
        record = json.loads(path.read_text())
        same = record["started"] is not None and started_at(record["pid"]) == record["started"]
        return int(record["pid"]) if same else None
