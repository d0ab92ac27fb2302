"""Our commands as ``dask scheduler``, ``dask worker`` and ``dask ssh``: what dask's own command line finds."""

from __future__ import annotations

import copy

import click

from daskfleet.cli import scheduler as _scheduler
from daskfleet.cli import ssh as _ssh
from daskfleet.cli import worker as _worker
from daskfleet.cli.spec import main as spec


def _named(name: str, command: click.Command) -> click.Command:
    renamed = copy.copy(command)
    renamed.name = name
    return renamed


scheduler = _named("scheduler", _scheduler.main)
worker = _named("worker", _worker.main)
ssh = _named("ssh", _ssh.main)

__all__ = ["scheduler", "spec", "ssh", "worker"]
