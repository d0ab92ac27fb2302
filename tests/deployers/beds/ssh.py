"""Three SSH servers on 127.0.0.2 to 127.0.0.4, with keys and configuration of their own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deployers.beds.tools import daemon, need_packages, need_root, normal_user, python_for, wait_until

HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
USER = "daskfleet-bed"


@dataclass(frozen=True)
class Bed:
    """The servers: one port on all three addresses.

    Attributes
    ----------
    known_hosts, key
        Files for the client.
    user
        Somebody without privileges, who can log in with `key` as root can.
    user_python
        A Python that this user can run.
    marker
        Is in the environment of every process of a session.
    """

    port: int
    known_hosts: Path
    key: Path
    user: pwd.struct_passwd
    user_python: str
    marker: str

    def connect_options(self, username: str = "root") -> dict[str, Any]:
        return {
            "port": self.port,
            "username": username,
            "client_keys": [str(self.key)],
            "known_hosts": str(self.known_hosts),
            "agent_path": None,
            "config": None,
        }


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[Bed]:
    """Start the servers with everything in `folder`, which others must be able to enter."""
    need_root("sshd")
    need_packages(["sshd", "ssh-keygen"], ["openssh-server", "openssh-client"])
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") or "sshd"
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    authorized = folder / "authorized_keys"
    shutil.copy(folder / "client.pub", authorized)
    authorized.chmod(0o644)
    # The ports of one server each, free on all three addresses.
    with contextlib.ExitStack() as stack:
        probe = stack.enter_context(socket.socket())
        probe.bind((HOSTS[0], 0))
        port = probe.getsockname()[1]
    public = (folder / "host.pub").read_text().split()[:2]
    known = folder / "known_hosts"
    known.write_text("".join(f"[{host}]:{port} {' '.join(public)}\n" for host in HOSTS))
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    marker = f"DASKFLEET_BED={folder.name}"
    with contextlib.ExitStack() as stack:
        user = stack.enter_context(normal_user(USER))
        for host in HOSTS:
            config = folder / f"sshd_{host}"
            config.write_text(
                f"Port {port}\nListenAddress {host}\nHostKey {folder / 'host'}\nPidFile none\nUsePAM no\n"
                f"AuthorizedKeysFile {authorized}\nStrictModes no\nPermitRootLogin prohibit-password\n"
                f"PasswordAuthentication no\nSetEnv {marker}\nAllowUsers root {USER}\nUseDNS no\n"
            )
            stack.enter_context(daemon([sshd, "-D", "-e", "-f", str(config)], folder / f"{host}.log"))
        for host in HOSTS:
            wait_until(lambda host=host: _answers(host, port), f"sshd on {host} does not answer")
        yield Bed(port, known, folder / "client", user, python_for(user, folder), marker)


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1) as connection:
        return connection.recv(4) == b"SSH-"
    return False


def public_folder(path: Path) -> Path:
    """`path`, and those above it that are ours, open for others to enter."""
    for part in (path, *path.parents):
        if part.stat().st_uid == os.geteuid() and str(part).startswith("/tmp/"):
            part.chmod(part.stat().st_mode | 0o755)
    return path
