"""What a cluster does while it starts, for people: `Progress`.

In a terminal a table of pods, shown only when starting takes longer than `AFTER`; in a notebook the same as HTML that
is rewritten in place; nothing otherwise. It only looks at the view, so it costs nothing when the view does not change.
"""

from __future__ import annotations

import asyncio
import html
import time
from types import TracebackType
from typing import Any

from daskfleet.deploy.kubernetes import diagnosis
from daskfleet.deploy.kubernetes.errors import ApiError
from daskfleet.deploy.kubernetes.view import View
from daskfleet.surface import surface

AFTER = 1.0
HEADER = ("Pod", "Status", "Reason")
Row = tuple[str, str, str]


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

        handle = display(self._bundle(), raw=True, display_id=True)
        try:
            while True:
                await self._next_change()
                handle.update(self._bundle(), raw=True)
        finally:
            handle.update({"text/plain": "", "text/html": ""}, raw=True)

    async def _next_change(self) -> None:
        try:
            async with asyncio.timeout(1):  # for the seconds
                await self._view.change()
        except (TimeoutError, ApiError):
            await asyncio.sleep(0.05)

    def rows(self) -> list[Row]:
        """Each pod, what it does and what holds it up, the scheduler first; the operator's own sentence before all."""
        scheduler = self._view.scheduler()
        pods = [*([scheduler] if scheduler else []), *self._view.workers()]
        rows = [(pod["metadata"]["name"], diagnosis.phase(pod), _reason(diagnosis.pod_problem(pod))) for pod in pods]
        said = diagnosis.resource_problem(self._view.cluster)
        if said is not None:
            rows.insert(0, (self._view.name, "", said.sentence))
        return rows or [("waiting for the operator", "", "")]

    @property
    def title(self) -> str:
        """What is being started, and for how long already."""
        return f"Starting {self._view.namespace}/{self._view.name} ({time.monotonic() - self._started:.0f} s)"

    def _bundle(self) -> dict[str, str]:
        """Everything as a notebook shows it."""
        rows = self.rows()
        plain = ", ".join(" ".join(cell for cell in row[:2] if cell) for row in rows)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        head = "".join(f"<th>{name}</th>" for name in HEADER)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return {"text/plain": f"{self.title}: {plain}", "text/html": f"<p>{html.escape(self.title)}</p>{table}"}

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(*HEADER, title=self.title, title_justify="left", box=None)
        for row in self.rows():
            table.add_row(*map(Text, row))  # what an image or a message is called is no markup
        return table


def _reason(problem: diagnosis.Problem | None) -> str:
    """The problem's sentence without the pod's name, which stands beside it."""
    return "" if problem is None else problem.sentence.partition(": ")[2] or problem.sentence
