"""Which parameters a cluster on a batch system has, under all their names, and where their values come from."""

from __future__ import annotations

from typing import Any

import dask

from daskfleet.deploy.jobqueue.system import System

#: dask-jobqueue's, which ``jobqueue.<system>.…`` in dask's configuration replaces.
DEFAULTS: dict[str, Any] = {
    "name": "dask-worker",
    "cores": None,
    "memory": None,
    "processes": None,
    "nanny": True,
    "python": None,
    "interface": None,
    "death-timeout": 60,
    "local-directory": None,
    "shared-temp-directory": None,
    "worker-command": "daskfleet.cli.worker",
    "worker-extra-args": [],
    "shebang": "#!/usr/bin/env bash",
    "queue": None,
    "account": None,
    "project": None,
    "walltime": None,
    "job-script-prologue": [],
    "job-script-epilogue": [],
    "resource-spec": None,
    "job-cpu": None,
    "job-mem": None,
    "job-extra-directives": [],
    "job-directives-skip": [],
    "disk": None,
    "lsf-units": None,
    "use-stdin": True,
    "memory-per-core-property-name": None,
    "submit-command-extra": [],
    "cancel-command-extra": [],
    "job-arrays": True,
    "log-directory": None,
    "scheduler-options": {},
    "scheduler-in-job": False,
    "scheduler-start-timeout": 600,
}
UPSTREAMS_WORKER = "distributed.cli.dask_worker"
#: Old names of parameters, which dask-jobqueue takes still.
RENAMED = {
    "env_extra": "job_script_prologue",
    "job_extra": "job_extra_directives",
    "header_skip": "job_directives_skip",
    "extra": "worker_extra_args",
    "ncpus": "job_cpu",
    "mem": "job_mem",
}
#: Parameters that only the systems have that list them (`System.parameters`).
SPECIAL = frozenset(
    {"disk", "lsf_units", "use_stdin", "memory_per_core_property_name", "submit_command_extra", "cancel_command_extra"}
)


def configured(cluster: str, config_name: str, system: System, given: dict[str, Any]) -> dict[str, Any]:
    """Parameters by their names with underscores: what was given, else the configuration's, else the default.

    Parameters
    ----------
    cluster
        Name of the class, for messages.
    config_name
        Section of the configuration.

    Raises
    ------
    ValueError
        One that was given is unknown.
    """
    for old, new in RENAMED.items():
        if given.get(old) is not None:
            given[new] = given.pop(old)
    if "job_name" in given:
        given["name"] = given.pop("job_name")
    settings = {}
    for key, default in DEFAULTS.items():
        parameter = key.replace("-", "_")
        ours = parameter not in SPECIAL or parameter in system.parameters
        value = given.pop(parameter, None) if ours else None
        for name in (key, *(old.replace("_", "-") for old, new in RENAMED.items() if new == parameter)):
            if value is None or value == []:
                value = dask.config.get(f"jobqueue.{config_name}.{name}", None)
        settings[parameter] = default if value is None else value
    settings["account"] = settings["account"] or settings["project"]
    if settings["worker_command"] == UPSTREAMS_WORKER:  # in the configuration files that dask-jobqueue makes
        settings["worker_command"] = DEFAULTS["worker-command"]
    if unknown := [key for key, value in given.items() if value is not None]:
        raise ValueError(f"{cluster}: unknown parameters {', '.join(sorted(unknown))}")
    return settings
