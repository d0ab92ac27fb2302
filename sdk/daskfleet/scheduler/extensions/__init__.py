"""What is not hot, one file a subject: calls that clients and workers make, and what clients share beyond tasks.

An extension is a class that is given the scheduler and registers what it answers (`Scheduler.handle`) and hears
(`Scheduler.hear`). Its state is its own. Whatever a client holds or waits for ends with the client: by
`Scheduler.on_client_gone`, so nothing here needs leases that have to be renewed or that run out. A task uses its
worker's client, so what a task holds ends with the worker.

What clients leave here by name is known to some workers as well (`Backup`), who tell a scheduler in this one's place.

The scheduler never unpickles what users store here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daskfleet.scheduler.extensions.backup import Backup
from daskfleet.scheduler.extensions.channels import Queues, Variables
from daskfleet.scheduler.extensions.control import Control
from daskfleet.scheduler.extensions.data import Data
from daskfleet.scheduler.extensions.datasets import Datasets
from daskfleet.scheduler.extensions.events import Events
from daskfleet.scheduler.extensions.flags import Flags
from daskfleet.scheduler.extensions.forget import FireAndForget
from daskfleet.scheduler.extensions.locks import MultiLocks, Semaphores
from daskfleet.scheduler.extensions.looking import Looking
from daskfleet.scheduler.extensions.memory_manager import MemoryManager
from daskfleet.scheduler.extensions.metadata import Metadata
from daskfleet.scheduler.extensions.pace import Pace
from daskfleet.scheduler.extensions.relay import Relay
from daskfleet.scheduler.extensions.restarting import Restarting
from daskfleet.scheduler.extensions.results import Results
from daskfleet.scheduler.extensions.spans import Spans
from daskfleet.scheduler.extensions.story import Story
from daskfleet.scheduler.extensions.watching import Watching

if TYPE_CHECKING:
    from daskfleet.scheduler.server import Scheduler

EXTENSIONS = (
    Backup,  # which others use
    Results,
    Control,
    Semaphores,
    MultiLocks,
    Flags,
    Variables,
    Queues,
    Datasets,
    Metadata,
    Events,
    FireAndForget,
    Restarting,
    Relay,
    Data,
    Looking,
    MemoryManager,
    Watching,
    Spans,
    Story,
    Pace,
)


def install(scheduler: Scheduler) -> None:
    """Give `scheduler` all of them, by name in its `extensions`."""
    for extension in EXTENSIONS:
        scheduler.extensions[extension.__name__.lower()] = extension(scheduler)
