"""MPI: `initialize` and `execute` in scripts that run under ``mpirun``; `cluster` where it is to start workers."""

from daskfleet.deploy.mpi.script import execute, initialize, send_close_signal

__all__ = ["execute", "initialize", "send_close_signal"]
