"""The programs a cluster needs, each from the first place that has it: this machine, its package manager, Go modules.

Kubernetes 1.34 wants Go 1.24, which is newer than what some distributions ship. An older Go can still download modules,
and Go's own toolchains are published as a module, so the distribution's Go fetches the right one and is not used again.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .progress import ClusterError, run, say, step

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "daskfleet"
SOURCE = Path(__file__).parent / "node"

KUBERNETES = "v1.34.4"
"""What ``node/go.mod`` pins."""
GO_NEEDED = (1, 24)
GO_TOOLCHAIN = "v0.0.1-go1.24.9"
HELM = "helm.sh/helm/v3/cmd/helm@v3.19.0"
KIND = "sigs.k8s.io/kind@v0.30.0"
KWOK = "sigs.k8s.io/kwok/cmd/kwok@v0.8.0"
KUBECTL_NEEDED = (1, 31)

DEBIAN = {
    "buildah": "buildah",
    "conntrack": "conntrack",
    "containerd": "containerd",
    "ctr": "containerd",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "runc": "runc",
    "socat": "socat",
    "sysctl": "procps",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "/etc/ssl/certs/ca-certificates.crt": "ca-certificates",
}
"""What each program of the node is called by Debian and Ubuntu."""


@contextmanager
def locked(name: str, others: str) -> Iterator[None]:
    """Have the lock of this name among all processes of this user; `others` is whom a line says that it waits for."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {others}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def missing(programs: Iterable[str]) -> list[str]:
    """Those of ``programs`` (names on PATH, or absolute files) that this machine lacks."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return [p for p in programs if not (Path(p).exists() if p.startswith("/") else shutil.which(p, path=path))]


def install(packages: dict[str, str]) -> None:
    """Make the programs that are the keys available, from the Debian packages that are the values."""
    lacking = missing(packages)
    if not lacking:
        return
    names = sorted({packages[program] for program in lacking})
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise ClusterError(f"not installed: {', '.join(lacking)}. Install them (Debian's packages: {' '.join(names)}).")
    with step(f"installing {' '.join(names)} with apt-get"):
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *names]
        try:
            run(command, env=quiet)
        except ClusterError:  # the package lists are absent or out of date
            run(["apt-get", "update", "-qq"], env=quiet)
            run(command, env=quiet)


def version_of(said: str) -> tuple[int, int]:
    """The first ``major.minor`` in what a program says about itself; (0, 0) without one."""
    found = re.search(r"(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def go() -> str:
    """A Go new enough for Kubernetes."""
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    modules = Path(os.environ.get("GOMODCACHE") or Path(os.environ.get("GOPATH") or Path.home() / "go") / "pkg" / "mod")
    downloaded = modules / "golang.org" / f"toolchain@{GO_TOOLCHAIN}.linux-{arch}" / "bin" / "go"
    found = [shutil.which("go"), "/usr/local/go/bin/go", "/usr/lib/go-1.24/bin/go", str(downloaded)]
    candidates = [path for path in found if path and os.access(path, os.X_OK)]
    for path in candidates:
        if version_of(run([path, "version"], env={"GOTOOLCHAIN": "local"})) >= GO_NEEDED:
            return path
    if not candidates:
        install({"go": "golang-go"})
        if version_of(run(["go", "version"], env={"GOTOOLCHAIN": "local"})) >= GO_NEEDED:
            return "go"
    with step(f"downloading {GO_TOOLCHAIN.partition('-')[2]}, as the Go here is too old for Kubernetes"):
        module = f"golang.org/toolchain@{GO_TOOLCHAIN}.linux-{arch}"
        old = candidates[0] if candidates else "go"
        # Outside of any module: an old Go cannot read a go.mod that asks for a newer one.
        run([old, "mod", "download", module], cwd=Path("/"), env={"GOFLAGS": "-modcacherw"})
        for program in (*downloaded.parent.iterdir(), *(downloaded.parent.parent / "pkg" / "tool").rglob("*")):
            program.chmod(0o755)  # a module's zip has no executable bits
    return str(downloaded)


def build(package: str, binary: Path) -> Path:
    """Build a program of ``node/``, unless what it is made of has not changed."""
    sources = sorted(path for path in SOURCE.rglob("*") if path.is_file())
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    stamp = binary.with_suffix(".key")
    if binary.exists() and stamp.exists() and stamp.read_text() == key:
        return binary
    compiler = go()
    binary.parent.mkdir(parents=True, exist_ok=True)
    told = f"building {binary.name} ({KUBERNETES}) from Go modules"
    with step(told + ("" if Path("~/.cache/go-build").expanduser().exists() else " (several minutes the first time)")):
        flags = f"-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES}"
        # A new file each time: the old one may be running.
        fresh = binary.with_suffix(".new")
        run(
            [compiler, "build", "-trimpath", "-buildvcs=false", f"-ldflags={flags}", "-o", fresh, package],
            cwd=SOURCE,
            env={"CGO_ENABLED": "0", "GOTOOLCHAIN": "local"},
            hint="It needs the Go module proxy.",
        )
        fresh.replace(binary)
    stamp.write_text(key)
    return binary


def go_install(module: str) -> str:
    """A program published as a Go module, ``path@version``: built once, kept by its version."""
    name, version = module.partition("@")[0].rsplit("/", 1)[1], module.partition("@")[2]
    folder = CACHE / "tools" / f"{name}-{version}"
    with locked(f"{name}.lock", f"another command that builds {name}"):
        if not (folder / name).exists():
            compiler = go()
            with step(f"building {name} {version} from Go modules"):
                environment = {"GOBIN": str(folder), "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
                run([compiler, "install", "-trimpath", "-ldflags=-s -w", module], env=environment)
    return str(folder / name)


@functools.cache
def kubectl() -> str:
    """The kubectl on PATH, or our own where there is none or it is too old for the node."""
    here = shutil.which("kubectl")
    if here:
        try:
            said = run([here, "version", "--client"], timeout=20)
            if version_of(said.partition("Client Version:")[2]) >= KUBECTL_NEEDED:
                return here
        except ClusterError as error:
            say(f"{here} does not work here: {str(error).splitlines()[0]}")
    return str(build("./kubectl", CACHE / "tools" / "kubectl"))


def helm(build: bool = True) -> str:
    """Helm 3, built if it must and may be: that takes minutes."""
    here = shutil.which("helm")
    if here is None and not build and not (CACHE / "tools" / HELM.rpartition("/")[2].replace("@", "-")).exists():
        raise ClusterError("helm is not installed; `python -m tests.cluster tool helm` installs it")
    return here or go_install(HELM)


def kind() -> str:
    """kind."""
    return shutil.which("kind") or go_install(KIND)


def kwok() -> str:
    """KWOK: simulated nodes."""
    return shutil.which("kwok") or go_install(KWOK)
