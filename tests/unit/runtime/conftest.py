"""Real clusters of processes on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class Command:
    """A ``dask-scheduler`` or ``dask-worker`` whose log can be waited for."""

    def __init__(self, name: str, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"daskfleet.cli.{name}", *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("DASK")} | (env or {}),
        )
        self.log: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.log.append(line.rstrip())
                self._news.notify_all()
        with self._news:
            self.log.append("-- end --")
            self._news.notify_all()

    def says(self, text: str, timeout: float = 180) -> str:
        """Wait for a line of the log that holds `text`."""

        def found() -> str | None:
            return next((line for line in self.log if text in line or line == "-- end --"), None)

        with self._news:
            line = self._news.wait_for(found, timeout)
        assert line and text in line, f"never said {text!r}:\n" + "\n".join(self.log)
        return line

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self, timeout: float = 180) -> int:
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    """Starts commands; all are gone afterwards."""
    started: list[Command] = []

    def start(*arguments: str, **options: Any) -> Command:
        started.append(Command(*arguments, **options))
        return started[-1]

    yield start
    for one in reversed(started):
        if one.process.poll() is None:
            one.process.terminate()
            try:
                one.process.wait(10)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait(10)


@pytest.fixture
def scheduler(command: Callable[..., Command], tmp_path: Path) -> Iterator[tuple[Command, str]]:
    """A ``dask-scheduler`` without token, and its address."""
    one = command("scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1")
    yield one, one.says("Scheduler at").split()[-1]
