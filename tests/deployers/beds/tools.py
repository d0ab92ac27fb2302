"""What the beds share: packages, processes that end with the session, users."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
REQUIRED = os.environ.get("DASKFLEET_REQUIRE_DEPLOYERS") == "1"


def missing(reason: str) -> None:
    """Skip what needs a bed that cannot be had, with the reason; in CI, where all can be had, fail."""
    (pytest.fail if REQUIRED else pytest.skip)(reason)


def need_root(what: str) -> None:
    if os.geteuid() != 0:
        missing(f"{what} is started by root only: run the tests as root, on a machine of their own")


def need_packages(commands: Sequence[str], packages: Sequence[str]) -> None:
    """Have the commands, from Debian's packages if they are not there yet."""
    if all(shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") for command in commands):
        return
    need_root(f"installing {packages[0]}")
    if not shutil.which("apt-get"):
        missing(f"{packages[0]} is not here and there is no apt-get to install it with")
    # RUNLEVEL=1 keeps the packages' own services from starting: a bed starts its own, with its own configuration.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", "-qq", *command], env=environment, capture_output=True, text=True, timeout=600
        )
        if done.returncode:
            missing(f"apt-get {command[0]} failed: {done.stderr.strip()[-500:]}")


def environment(name: str, *packages: str) -> Path:
    """A virtual environment with `packages` of PyPI, made on first use and kept in the user's cache, that sees ours."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = Path.home() / ".cache" / "daskfleet" / f"{name}-{version}"
    if not (folder / "ready").exists():
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages]
        for command in ([sys.executable, "-m", "venv", str(folder)], pip):
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if done.returncode:
                missing(f"{', '.join(packages)} cannot be installed: {done.stderr.strip()[-500:]}")
        (folder / "ready").touch()
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "daskfleet.pth").write_text(f"{REPOSITORY / 'sdk'}\n{Path(pytest.__file__).parents[1]}\n")
    return folder


def wait_until(what: Callable[[], object], why: str, timeout: float = 90) -> None:
    """Wait until `what` is true; `why` says what is missing otherwise."""
    deadline = time.monotonic() + timeout
    while not what():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{why}, still after {timeout:g} s")
        time.sleep(0.05)


@contextlib.contextmanager
def daemon(command: Sequence[str], log: Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the foreground of its own session, ended with the block, by its id."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            list(command), stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True, **options
        )  # type: ignore[call-overload]
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, then make it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def normal_user(name: str) -> Iterator[pwd.struct_passwd]:
    """A user without privileges, made and removed again with the home."""
    need_root("a user for the test")
    subprocess.run(["userdel", "--remove", name], capture_output=True)
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", name], check=True, capture_output=True)
    # Without a password an account counts as locked, and sshd without PAM lets nobody in.
    subprocess.run(["usermod", "--password", "*", name], check=True, capture_output=True)
    try:
        yield pwd.getpwnam(name)
    finally:
        for _ in range(50):
            if not subprocess.run(["userdel", "--remove", name], capture_output=True).returncode:
                break
            time.sleep(0.1)  # a process of theirs is just ending


def python_for(user: pwd.struct_passwd, folder: Path) -> str:
    """A Python with this project that `user` can run: the environment's own, else the system's with its packages."""

    def works(python: str) -> bool:
        return not subprocess.run(
            [python, "-c", "import daskfleet.deploy.remote"],
            user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", capture_output=True,
        ).returncode  # fmt: skip

    with contextlib.suppress(OSError):
        if works(sys.executable):
            return sys.executable
    wrapper = folder / "python"
    packages = Path(pytest.__file__).parents[1]
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH="{REPOSITORY / "sdk"}:{packages}" exec /usr/bin/python3 "$@"\n')
    wrapper.chmod(0o755)
    with contextlib.suppress(OSError):
        if works(str(wrapper)):
            return str(wrapper)
    missing(f"no Python that user {user.pw_name} can read: {sys.executable} is private, and /usr/bin/python3 differs")
    raise AssertionError


def processes_of_cluster(marker: str) -> list[str]:
    """Command lines, with process ids, of all processes whose environment or command line has `marker`."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if marker.encode() in folder.joinpath("environ").read_bytes() + folder.joinpath("cmdline").read_bytes():
                found.append(
                    f"{folder.name} {folder.joinpath('cmdline').read_bytes().replace(bytes(1), b' ').decode()}"
                )
    return found
