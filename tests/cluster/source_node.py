"""A single-node Kubernetes without Docker: every component from one binary that is built from Go modules.

Why so: a machine without Docker, and without a registry to pull Kubernetes' own images from, still has a distribution's
containerd and the Go module proxy. ``node/main.go`` compiles etcd, the API server, the controller manager, the
scheduler, the kubelet, kube-proxy and CoreDNS into one program, and they run here as plain processes.

All of them live in a network namespace of their own, with the pods behind a bridge in it, so nothing they do to routes
or firewall rules reaches the machine; the API server alone is relayed, through a unix socket, to 127.0.0.1. Pods and
their control groups hang below one group of our own. ``down`` undoes all of it: processes (by id and start time),
mounts, namespaces, control groups, kernel settings that the kubelet changed. What stays are caches: the binary, and the
images that were loaded.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import machine, tools
from .base import Cluster
from .node_config import BRIDGE, NODE_IP, PAUSE, POD_GATEWAY, SERVICE_NETWORK, NodeConfig
from .oci import OciLayout, full_name
from .processes import Processes
from .progress import ClusterError, run, step

PROGRAMS = {name: package for name, package in tools.DEBIAN.items() if name != "debootstrap"}


class SourceNode(Cluster):
    """One node, found by its name.

    Parameters
    ----------
    name:
        Of the node, its network namespace and its folder below ``/run``. The default node keeps its files in
        ``~/.cache/daskfleet/kubenode``, any other in ``~/.cache/daskfleet/NAME``.
    port:
        Where on 127.0.0.1 its API is served; another free one is taken when that is in use.
    """

    description = "a single node built from source"
    builder = "buildah"

    def __init__(self, name: str = "daskfleet-node", port: int = 6443) -> None:
        self.name = name
        self.wanted_port = port
        self.home = tools.CACHE / ("kubenode" if name == "daskfleet-node" else name)
        self.kubeconfig = self.home / "kubeconfig"
        self.config = NodeConfig(
            name=name,
            binary=tools.CACHE / "kubenode" / "bin" / "daskfleet-node",
            state=self.home / "state",
            runtime=Path("/run") / name,
            images=self.home / "containerd",
            kubeconfig=self.kubeconfig,
        )
        self.processes = Processes(self.config.state / "processes")

    @staticmethod
    def lacking() -> str | None:
        """Why a node cannot be had on this machine; None when it can."""
        if os.uname().sysname != "Linux":
            return "a node from source needs Linux"
        if os.geteuid() != 0:
            return "a node from source needs root"
        return None

    # -- what the rest of the tests use ------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether the node is up and its API answers."""
        alive = self.processes.alive()
        if not self.kubeconfig.exists() or not alive or not all(alive.values()):
            return False
        return self.answers()

    def up(self) -> None:
        """Build and start the node unless it runs; ready for pods on return."""
        tools.install(PROGRAMS)
        tools.build(".", self.config.binary)
        pause = tools.build("./pause", self.config.binary.with_name("pause"))
        tools.kubectl()
        if self.ready():
            return
        self.down()
        with step(f"starting the node {self.name} (Kubernetes {tools.KUBERNETES})"):
            self._start(pause)

    def load(self, images: Sequence[str]) -> None:
        layout = OciLayout(self.home / "layout")
        for image in images:
            layout.add(image, full_name(image))
        try:
            self._import(layout)
        except ClusterError:
            # containerd may collect the old image's layers as garbage while it unpacks the new image onto them.
            self._import(layout)

    def has(self, image: str, identity: str) -> bool:
        name = full_name(image)
        rows = [line.split() for line in self._ctr("images", "list", f"name=={name}").splitlines()[1:]]
        if not rows:
            return False
        manifest = json.loads(self._ctr("content", "get", rows[0][2]))
        return bool(manifest["config"]["digest"] == identity)

    def execute(self, command: Sequence[str]) -> int:
        """Run a command inside the node's network namespace, for instance to reach a pod's address."""
        return subprocess.run(self.config.inside(command), check=False).returncode

    def down(self) -> None:
        """End the node and remove all that it left on the machine, but for caches."""
        config = self.config
        if not any(path.exists() for path in (config.state, config.runtime, config.namespace)):
            return
        alive = self.processes.alive()
        with step(f"taking the node {self.name} down"):
            self.processes.stop([name for name in alive if name != "containerd"], grace=1)
            if alive.get("containerd"):
                with contextlib.suppress(ClusterError, subprocess.TimeoutExpired):
                    self._remove_containers()
            self.processes.stop(["containerd"], grace=5)
            machine.end_shims(config.socket)
            machine.unmount([config.state, config.runtime, config.images])
            subprocess.run(["ip", "netns", "delete", self.name], capture_output=True, check=False)
            machine.remove_control_group(self.name)
            machine.restore_kernel_settings(self._kernel_settings)
            machine.remove_records(self.name, config.state)
            shutil.rmtree(config.state, ignore_errors=True)
            shutil.rmtree(config.runtime, ignore_errors=True)
            self.kubeconfig.unlink(missing_ok=True)

    def purge(self) -> None:
        """What ``down`` does, and the caches of this node too."""
        self.down()
        shutil.rmtree(self.home, ignore_errors=True)

    @property
    def _kernel_settings(self) -> Path:
        return self.config.state / "kernel-settings.json"

    # -- starting ----------------------------------------------------------------------------------------------------

    def _start(self, pause: Path) -> None:
        config = self.config
        config.state.mkdir(parents=True)
        config.runtime.mkdir(exist_ok=True)
        machine.save_kernel_settings(self._kernel_settings)
        machine.make_control_group(self.name)
        self._make_network()
        port = self._free_port()
        config.write(port)
        for name, command in config.first_services(port).items():
            self.processes.start(name, command, cwd=config.state)
        self._wait("containerd", config.socket.exists)
        self._remove_containers()  # left by a machine that went down under a running node
        self._remove_replaced_images()
        self._load_pause(pause)
        self._wait("the API server", self.answers)
        for name, command in config.second_services().items():
            self.processes.start(name, command, cwd=config.state)
        ready = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
        self._wait("the kubelet", lambda: self.kubectl("get", "node", self.name, "-o", ready) == "True")
        # Pods are refused until the controllers have made the namespace's account.
        self._wait("the service account", lambda: bool(self.kubectl("get", "serviceaccount", "default", "-o", "name")))

    def _make_network(self) -> None:
        network = ["ip", "-n", self.name]
        run(["ip", "netns", "add", self.name], hint="A node needs to make network namespaces (CAP_SYS_ADMIN).")
        run([*network, "link", "set", "lo", "up"])
        run([*network, "addr", "add", f"{NODE_IP}/32", "dev", "lo"])
        # A bridge without an address of its own takes the lowest of its ports': when that pod goes, so does the gateway
        # that all others know, for the half minute until they ask who it is now.
        run([*network, "link", "add", "cni0", "address", BRIDGE, "type", "bridge"])
        run([*network, "addr", "add", POD_GATEWAY, "dev", "cni0"])
        run([*network, "link", "set", "cni0", "up"])
        # kube-proxy rewrites service addresses, but only of packets that have a route in the first place.
        run([*network, "route", "add", SERVICE_NETWORK, "dev", "cni0"])
        run(self.config.inside(["sysctl", "-qw", "net.ipv4.ip_forward=1"]))

    def _free_port(self) -> int:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.wanted_port))
            except OSError:
                probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    def _wait(self, what: str, condition: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(ClusterError):
                if condition():
                    return
            ended = [name for name, runs in self.processes.alive().items() if not runs]
            if ended:
                said = "\n".join(f"{name}: {self.processes.log(name)}" for name in ended)
                raise ClusterError(f"{what} did not come up: {', '.join(ended)} ended. The end of the log:\n{said}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{what} did not come up within {seconds:.0f} s; logs: {self.processes.folder}")
            time.sleep(0.05)

    # -- images ------------------------------------------------------------------------------------------------------

    def _import(self, layout: OciLayout) -> None:
        with subprocess.Popen(
            self._ctr_command("images", "import", "-"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as importing:
            assert importing.stdin is not None and importing.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                layout.write(importing.stdin, without=set(self._ctr("content", "list", "-q").split()))
            importing.stdin.close()
            said = importing.stdout.read().decode(errors="replace")
        if importing.returncode:
            raise ClusterError(f"containerd did not take the images: {said}")

    def _ctr(self, *words: str) -> str:
        return run(self._ctr_command(*words), timeout=300)

    def _ctr_command(self, *words: str) -> list[str]:
        return ["ctr", "--address", str(self.config.socket), "--namespace", "k8s.io", *words]

    def _load_pause(self, pause: Path) -> None:
        if PAUSE in self._ctr("images", "list", "-q").split():
            return
        recipe = 'FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n'
        run(["buildah", "bud", "-q", "-t", PAUSE, "-f", "-", pause.parent], input=recipe)
        self.load([PAUSE])

    def _remove_replaced_images(self) -> None:
        """Give up the images whose name a newer one has; containerd also keeps each under its digest."""
        rows = [line.split() for line in self._ctr("images", "list").splitlines()[1:]]
        named = {row[2] for row in rows if not row[0].startswith("sha256:")}
        replaced = [row[0] for row in rows if row[2] not in named]
        if replaced:
            self._ctr("images", "remove", *replaced)

    # -- ending ------------------------------------------------------------------------------------------------------

    def _remove_containers(self) -> None:
        """Kill and remove every container, so that the images stay usable for the next start."""
        for line in self._ctr("tasks", "list").splitlines()[1:]:
            with contextlib.suppress(ClusterError):
                self._ctr("tasks", "delete", "--force", line.split()[0])
        containers = self._ctr("containers", "list", "-q").split()
        if containers:
            with contextlib.suppress(ClusterError):
                self._ctr("containers", "delete", *containers)
