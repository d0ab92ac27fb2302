"""``/status`` and its panels as pages of their own, which JupyterLab's Dask extension embeds.

All are one HTML file, script and style (folder ``page``); the file names the panels to show. The script gets its
figures from `live.Events` and puts it into the page as text, never as markup.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tornado.template import Template

from daskfleet.scheduler.http.handler import SchedulerHandler


@dataclass(frozen=True, slots=True)
class Panel:
    """A part of the page: its id in the script and its heading."""

    id: str
    title: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A panel as a page of its own."""

    path: str
    name: str
    panel: Panel


STATES = Panel("states", "Tasks by state")
PROGRESS = Panel("progress", "Progress")
THROUGHPUT = Panel("throughput", "Throughput")
MEMORY = Panel("memory", "Memory of the cluster")
STREAM = Panel("stream", "Task stream")
WORKERS = Panel("workers", "Workers")

PANELS = (THROUGHPUT, MEMORY, STATES, PROGRESS, STREAM, WORKERS)

#: Paths and names that distributed has for the like, where it has one: the extension remembers layouts by them.
PLOTS = (
    Plot("individual-task-stream", "Individual Task Stream", STREAM),
    Plot("individual-progress", "Individual Progress", PROGRESS),
    Plot("individual-workers", "Individual Workers", WORKERS),
    Plot("individual-cluster-memory", "Individual Cluster Memory", MEMORY),
    Plot("individual-throughput", "Individual Throughput", THROUGHPUT),
    Plot("individual-task-states", "Individual Task States", STATES),
)

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self' ws: wss:",
        "base-uri 'none'",
        "form-action 'none'",
    )
)

_TEMPLATE = Template(Path(__file__).with_name("page").joinpath("live.html").read_text("utf-8"))
_BY_PATH = {f"/{plot.path}": plot for plot in PLOTS}


class Page(SchedulerHandler):
    def get(self) -> None:
        plot = _BY_PATH.get(self.request.path)
        self.set_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        self.write(
            _TEMPLATE.generate(
                title=plot.panel.title if plot else "Status",
                panels=(plot.panel,) if plot else PANELS,
                alone=plot is not None,
                nonce=self.application.settings["nonce"],
            )
        )


class IndividualPlots(SchedulerHandler):
    def get(self) -> None:
        self.write_json({plot.name: f"/{plot.path}" for plot in PLOTS})
