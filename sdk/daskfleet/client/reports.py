"""What ran while a block of code did: `get_task_stream`, `get_task_metadata` and `performance_report`."""

from __future__ import annotations

import asyncio
import time
import zlib
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from daskfleet.client.current import current_client

if TYPE_CHECKING:
    from daskfleet.client.client import Client

#: Bars of a timeline; of more tasks, the longest are drawn.
BARS = 5000
#: Calls with a smaller share of all samples are left out of a profile's page.
SMALLEST = 0.005


class _Block:
    """A block of code, in ``with`` and ``async with``, and the tasks that ended meanwhile."""

    def __init__(self, client: Client | None = None) -> None:
        self._given = client
        self._start = 0.0

    @property
    def _client(self) -> Client:
        if self._given is None:
            self._given = current_client()
        return self._given

    async def _enter(self) -> None:
        self._start = await self._client._call("watch")

    async def _exit(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._client._sync(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        self._client._sync(self._exit)

    async def __aenter__(self) -> Self:
        await self._enter()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit()


class get_task_stream(_Block):
    """Which tasks ended within the block, when and where.

    Parameters
    ----------
    client
        The current one by default.
    plot
        True or ``"save"``: write a timeline (HTML), to ``task-stream.html`` unless there is a filename.
    filename
        Write it there.

    Attributes
    ----------
    data : list of dict
        After the block: the records of `Client.get_task_stream`.
    figure : TimelinePlot
        After the block: the timeline, which a notebook shows and ``figure.save(filename)`` writes.

    Examples
    --------
    >>> with get_task_stream() as stream:  # doctest: +SKIP
    ...     x.compute()
    >>> stream.data  # doctest: +SKIP
    """

    def __init__(self, client: Client | None = None, plot: bool | str = False, filename: str | None = None) -> None:
        super().__init__(client)
        self.filename = filename or ("task-stream.html" if plot else None)
        self.data: list[dict[str, Any]] = []

    async def _exit(self) -> None:
        self.data.extend(await self._client._task_stream(self._start, None, None))
        if self.filename is not None:
            await asyncio.to_thread(self.figure.save, self.filename)

    @property
    def figure(self) -> TimelinePlot:
        return TimelinePlot(self.data)


class get_task_metadata(_Block):
    """How tasks ended within the block.

    Attributes
    ----------
    metadata : dict
        After the block, by key: ``worker start stop nbytes type``.
    state : dict
        By key: ``"memory"`` or ``"erred"``.
    """

    def __init__(self, client: Client | None = None) -> None:
        super().__init__(client)
        self.metadata: dict[Any, dict[str, Any]] = {}
        self.state: dict[Any, str] = {}

    async def _exit(self) -> None:
        for record in await self._client._task_stream(self._start, None, None):
            names = ("worker", "start", "stop", "nbytes", "type")
            self.metadata[record["key"]] = {name: record[name] for name in names}
            self.state[record["key"]] = "memory" if record["status"] == "OK" else "erred"


class performance_report(_Block):
    """Writes a page about what the cluster did within the block: one HTML file that needs nothing else.

    It has a summary, a timeline of tasks, a table by kind of task, where their time went (by samples) and the versions.

    Parameters
    ----------
    filename
        Where to.
    client
        The current one by default.
    stacklevel, mode, storage_options
        Taken for compatibility: the calling code is not in the page, no Bokeh either, and `filename` is a local one.

    Examples
    --------
    >>> with performance_report("report.html"):  # doctest: +SKIP
    ...     x.compute()
    """

    def __init__(
        self,
        filename: str = "dask-report.html",
        stacklevel: int = 1,
        mode: str | None = None,
        storage_options: dict[str, Any] | None = None,
        *,
        client: Client | None = None,
    ) -> None:
        super().__init__(client)
        self.filename = filename

    async def _exit(self) -> None:
        client, stop = self._client, time.time()
        records = await client._task_stream(self._start, None, None)
        identity = await client._call("identity")
        profile = await client._profile(True, None, self._start, None, [])
        seen = await client._versions(False)
        spans = await client._call("spans", self._start)
        page = await asyncio.to_thread(_report, list(records), spans, identity, profile, seen, stop - self._start)
        await asyncio.to_thread(Path(self.filename).write_text, page)


# Pages --------------------------------------------------------------------------------------------------------------


def _report(
    records: list[dict[str, Any]],
    spans: list[dict[str, Any]],
    identity: dict[str, Any],
    profile: dict[str, Any],
    seen: dict[str, Any],
    seconds: float,
) -> str:
    busy = sum(record["stop"] - record["start"] for record in records)
    summary = {
        "Duration": f"{seconds:.3g} s",
        "Tasks": f"{len(records):,}",
        "Failed": f"{sum(record['status'] != 'OK' for record in records):,}",
        "Time in tasks": f"{busy:.3g} s",
        "Workers": f"{identity['n_workers']} with {identity['total_threads']} threads",
        "Threads busy": f"{busy / max(seconds * identity['total_threads'], 1e-9):.0%}",
        "Scheduler": identity["address"],
    }
    kinds: dict[str, list[float]] = {}
    for record in records:
        kinds.setdefault(record["name"], []).append(record["stop"] - record["start"])
    by_kind = [
        (name, f"{len(times):,}", f"{sum(times):.3g}", f"{sum(times) / len(times):.3g}", f"{max(times):.3g}")
        for name, times in sorted(kinds.items(), key=lambda item: -sum(item[1]))
    ]
    by_span = [
        (" / ".join(span["name"]), span["tasks"], span["failed"], f"{span['seconds']:.3g}", f"{span['nbytes']:,}")
        for span in spans
    ]
    packages = sorted(seen["client"])
    versions = [
        (
            name,
            seen["client"][name],
            seen["scheduler"].get(name),
            ", ".join(sorted({str(worker.get(name)) for worker in seen["workers"].values()})),
        )
        for name in packages
    ]
    return _page(
        "Performance report",
        _table((), summary.items()),
        "<h2>Timeline</h2>",
        timeline(records),
        "<h2>Tasks</h2>",
        _table(("Kind", "Tasks", "Seconds", "Mean", "Longest"), by_kind),
        *(["<h2>Spans</h2>", _table(("Span", "Tasks", "Failed", "Seconds", "Bytes"), by_span)] if spans else []),
        "<h2>Profile</h2>",
        _calls(profile, max(profile["count"], 1)),
        "<h2>Versions</h2>",
        _table(("Package", "Client", "Scheduler", "Workers"), versions),
    )


def timeline(records: list[dict[str, Any]]) -> str:
    """Tasks as bars, a row for each worker's thread that was busy at once, as SVG."""
    if not records:
        return "<p>No task has ended.</p>"
    drawn = sorted(records, key=lambda record: record["start"] - record["stop"])[:BARS]
    drawn.sort(key=lambda record: (record["worker"], record["start"]))
    first = min(record["start"] for record in drawn)
    scale = 1000 / max(max(record["stop"] for record in drawn) - first, 1e-9)
    ends: dict[str, list[float]] = {}
    rows: dict[tuple[str, int], list[str]] = {}
    for record in drawn:
        lanes = ends.setdefault(record["worker"], [])
        lane = next((i for i, end in enumerate(lanes) if end <= record["start"] + 1e-6), len(lanes))
        lanes[lane : lane + 1] = [record["stop"]]
        x, width = (record["start"] - first) * scale, (record["stop"] - record["start"]) * scale
        about = f"{record['key']}\n{record['stop'] - record['start']:.4g} s on {record['worker']}"
        colour = f"hsl({zlib.crc32(record['name'].encode()) % 360} 55% {60 if record['status'] == 'OK' else 20}%)"
        rows.setdefault((record["worker"], lane), []).append(
            f'<rect x="{x:.2f}" width="{max(width, 0.3):.2f}" height="14" fill="{colour}">'
            f"<title>{escape(about)}</title></rect>"
        )
    parts = [
        f'<g transform="translate(0 {18 * i})">{"".join(bars)}</g>' for i, (_, bars) in enumerate(sorted(rows.items()))
    ]
    left_out = f"<p>The longest {BARS:,} of {len(records):,} tasks.</p>" if len(records) > BARS else ""
    height = 18 * len(rows)
    return (
        f'{left_out}<svg viewBox="0 0 1000 {height}" width="100%" height="{height}" preserveAspectRatio="none" '
        f'role="img" aria-label="tasks over time">{"".join(parts)}</svg>'
    )


class _Plot:
    """A figure that notebooks show."""

    def __init__(self, title: str, about: str, body: str) -> None:
        self._title, self._about, self._body = title, about, body

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._about}>"

    def _repr_html_(self) -> str:
        return self._body

    def save(self, filename: str) -> None:
        """Write it as a page of its own (HTML)."""
        Path(filename).write_text(_page(self._title, self._body))


class TimelinePlot(_Plot):
    """Tasks over time, a row for each thread of each worker; notebooks show it."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        super().__init__("Task stream", f"{len(records)} tasks", timeline(records))


class ProfilePlot(_Plot):
    """A profile as nested calls, each with a bar for its share of the time; notebooks show it."""

    def __init__(self, profile: dict[str, Any]) -> None:
        count = profile["count"]
        super().__init__("Profile", f"{count} samples", _calls(profile, max(count, 1)))

    def _repr_html_(self) -> str:
        return f'<div class="daskfleet-profile"><style>{_BAR}</style>{self._body}</div>'


def _calls(profile: dict[str, Any], total: int) -> str:
    if not profile["count"]:
        return "<p>No samples: the tasks were too short, or there were none.</p>"
    children = sorted(profile["children"].values(), key=lambda child: -child["count"])
    inner = "".join(_calls(child, total) for child in children if child["count"] >= SMALLEST * total)
    about = profile["description"]
    where = (
        f"{escape(about['name'])} <small>{escape(about['filename'])}:{about['line_number']}</small>" if about else "all"
    )
    share = profile["count"] / total
    bar = f'<span class="bar" style="width:{20 * share:.2f}em"></span>'
    opened = " open" if share > 0.2 else ""
    return f"<details{opened}><summary>{bar}{share:.1%} {where}</summary>{inner}</details>"


def _table(head: tuple[str, ...], rows: Any) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>" if head else f"<table>{body}</table>"


_BAR = ".bar{display:inline-block;height:.8em;background:#48a;margin-right:.5em}"
_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em}"
    "td,th{padding:.1em 1em .1em 0;text-align:left}svg{background:#8881}details{margin-left:1em}small{color:#888}"
) + _BAR


def _page(title: str, *parts: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>{''.join(parts)}</body></html>\n"
    )
