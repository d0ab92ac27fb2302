"""The scheduler's HTTP server: probes, metrics, the API that operators use, and the live page. See `serve`."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from tornado.web import StaticFileHandler

from daskfleet.http.info import LogsPage
from daskfleet.http.logs import ring
from daskfleet.http.server import Health, HttpService, Redirect, Sitemap, start
from daskfleet.scheduler.http import api, info, metrics
from daskfleet.scheduler.http.live import Events, Feed
from daskfleet.scheduler.http.pages import PLOTS, IndividualPlots, Page

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

#: The port that a scheduler's dashboard has unless somebody else has it.
DEFAULT_PORT = 8787


class Asset(StaticFileHandler):
    """The page's script and style. Browsers ask each time whether they are still the same."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Content-Type-Options", "nosniff")


async def serve(scheduler: Scheduler, address: str) -> HttpService:
    """Serve `scheduler` at `address`, such as ``:8787``.

    When port 8787 is taken, any free one is used instead, with a warning that names both; another port that is taken is
    an `OSError`. Looking is open to whoever reaches the port; what changes the cluster takes its token.
    """
    ring()
    nonce = secrets.token_urlsafe(16)
    feed = Feed(scheduler)
    plain = [
        (r"/health", Health),
        (r"/metrics", metrics.Metrics),
        (r"/json/identity\.json", info.Identity),
        (r"/json/counts\.json", info.Counts),
        (r"/sitemap\.json", Sitemap),
        (r"/individual-plots\.json", IndividualPlots),
        (r"/info/main/workers\.html", info.WorkersPage),
        (r"/info/main/logs\.html", LogsPage),
        (r"/info/main/exceptions\.html", info.ExceptionsPage),
        (r"/api/v1/get_workers", api.GetWorkers),
        (r"/api/v1/adaptive_target", api.AdaptiveTarget),
        (r"/api/v1/check_idle", api.CheckIdle),
        (r"/api/v1/workers_to_close", api.WorkersToClose),
        (r"/api/v1/retire_workers", api.RetireWorkers),
        (r"/status", Page),
        *((f"/{plot.path}", Page) for plot in PLOTS),
    ]
    folder = str(Path(__file__).with_name("page"))
    service = await start(
        address,
        [
            (r"/", Redirect, {"to": "status"}),
            (r"/events", Events, {"feed": feed, "nonce": nonce}),
            (r"/static/(.*)", Asset, {"path": folder}),
            *plain,
        ],
        usual_port=DEFAULT_PORT,
        security=scheduler.security,
        on_stop=[feed.stop],
        scheduler=scheduler,
        nonce=nonce,
        paths=[pattern.replace("\\", "") for pattern, _ in plain],
        info_style="../../static/live.css",
        info_links=[
            ("Status", "../../status"),
            ("Workers", "workers.html"),
            ("Exceptions", "exceptions.html"),
            ("Logs", "logs.html"),
        ],
        websocket_ping_interval=20,
    )
    return service
