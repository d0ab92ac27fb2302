"""Clusters on batch systems, with dask-jobqueue's parameters and configuration; see `core`."""

from daskfleet.deploy.jobqueue.core import JobQueueCluster
from daskfleet.deploy.jobqueue.others import HTCondorCluster, LSFCluster, OARCluster
from daskfleet.deploy.jobqueue.pbs import MoabCluster, PBSCluster
from daskfleet.deploy.jobqueue.sge import SGECluster
from daskfleet.deploy.jobqueue.slurm import SLURMCluster

__all__ = [
    "HTCondorCluster",
    "JobQueueCluster",
    "LSFCluster",
    "MoabCluster",
    "OARCluster",
    "PBSCluster",
    "SGECluster",
    "SLURMCluster",
]
