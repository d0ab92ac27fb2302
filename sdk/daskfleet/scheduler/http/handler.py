"""What the handlers of the scheduler share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daskfleet.http.server import Handler

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler


class SchedulerHandler(Handler):
    @property
    def scheduler(self) -> Scheduler:
        scheduler: Scheduler = self.application.settings["scheduler"]
        return scheduler
