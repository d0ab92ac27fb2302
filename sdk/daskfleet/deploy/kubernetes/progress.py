"""What a cluster does while it starts, for people: `Progress`.

In a terminal a table of pods, shown only when starting takes longer than `AFTER`; in a notebook one line that is
rewritten; nothing otherwise. It only looks at the view, so it costs nothing when the view does not change.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any

from daskfleet.deploy.kubernetes import diagnosis
from daskfleet.deploy.kubernetes.errors import ApiError
from daskfleet.deploy.kubernetes.view import View
from daskfleet.surface import surface

AFTER = 1.0


class Progress:
    """Shows `view` until it is left. Used by ``with`` on the event loop."""

    def __init__(self, view: View, *, quiet: bool = False) -> None:
        self._view = view
        self._kind = None if quiet else surface()
        self._task: asyncio.Task[None] | None = None
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        if self._kind is not None:
            self._task = asyncio.get_running_loop().create_task(self._show())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _show(self) -> None:
        await asyncio.sleep(AFTER)
        if self._kind == "notebook":
            return await self._in_notebook()
        from rich.live import Live

        with Live(self._table(), transient=True, refresh_per_second=8) as live:
            while True:
                await self._next_change()
                live.update(self._table())

    async def _in_notebook(self) -> None:
        from IPython.display import display  # type: ignore[import-not-found, unused-ignore]

        handle = display({"text/plain": self.line()}, raw=True, display_id=True)
        try:
            while True:
                await self._next_change()
                handle.update({"text/plain": self.line()}, raw=True)
        finally:
            handle.update({"text/plain": ""}, raw=True)

    async def _next_change(self) -> None:
        try:
            async with asyncio.timeout(1):  # for the seconds
                await self._view.change()
        except (TimeoutError, ApiError):
            await asyncio.sleep(0.05)

    def rows(self) -> list[tuple[str, str]]:
        """Each pod and what it does, the scheduler first."""
        scheduler = self._view.scheduler()
        pods = [*([scheduler] if scheduler else []), *self._view.workers()]
        return [(pod["metadata"]["name"], diagnosis.phase(pod)) for pod in pods]

    def line(self) -> str:
        """Everything in one line."""
        pods = ", ".join(f"{name} {what}" for name, what in self.rows()) or "waiting for the operator"
        return f"Starting {self._view.name} ({time.monotonic() - self._started:.0f} s): {pods}"

    def _table(self) -> Any:
        from rich.table import Table

        title = f"Starting {self._view.namespace}/{self._view.name} ({time.monotonic() - self._started:.0f} s)"
        table = Table("Pod", "Status", title=title, title_justify="left", box=None)
        for name, what in self.rows() or [("waiting for the operator", "")]:
            table.add_row(name, what)
        return table
