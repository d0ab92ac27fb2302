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
import csv
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import tools
from .base import Cluster
from .oci import OciLayout, full_name
from .processes import Processes
from .progress import ClusterError, run, say, step

NODE_IP = "198.18.255.1"
POD_NETWORK, POD_GATEWAY = "198.18.0.0/17", "198.18.0.1/17"
SERVICE_NETWORK, SERVICE_IP = "198.19.0.0/16", "198.19.0.1"
PAUSE = "localhost/daskfleet/pause:1"
KERNEL_SETTINGS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")
"""What the kubelet sets for the whole machine, put back by ``down``."""
PROGRAMS = {name: package for name, package in tools.DEBIAN.items() if name != "debootstrap"}


Words = list[str | Path]


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
        self.state = self.home / "state"
        self.runtime = Path("/run") / name
        self.images = self.home / "containerd"
        self.kubeconfig = self.home / "kubeconfig"
        self.socket = self.runtime / "containerd.sock"
        self.processes = Processes(self.state / "processes")
        self.binary = tools.CACHE / "kubenode" / "bin" / "daskfleet-node"

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
        try:
            self.kubectl("get", "--raw", "/readyz", "--request-timeout=5s")
        except ClusterError:
            return False
        return True

    def up(self) -> None:
        """Build and start the node unless it runs; ready for pods on return."""
        tools.install(PROGRAMS)
        binary = tools.build(".", self.binary)
        pause = tools.build("./pause", self.binary.with_name("pause"))
        tools.kubectl()
        if self.ready():
            return
        self.down()
        with step(f"starting the node {self.name} (Kubernetes {tools.KUBERNETES})"):
            try:
                self._start(binary, pause)
            except BaseException:
                for name, runs in self.processes.alive().items():
                    if not runs:
                        say(f"{name} has ended; the end of its log:\n{self.processes.log(name)}")
                raise

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
        return subprocess.run(self._inside(command), check=False).returncode

    def down(self) -> None:
        """End the node and remove all that it left on the machine, but for caches."""
        alive = self.processes.alive()
        if not alive and not self.state.exists() and not self.runtime.exists() and not self._namespace().exists():
            return
        with step(f"taking the node {self.name} down"):
            self.processes.stop([name for name in alive if name != "containerd"], grace=1)
            if alive.get("containerd"):
                with contextlib.suppress(ClusterError, subprocess.TimeoutExpired):
                    self._remove_containers()
            self.processes.stop(["containerd"], grace=5)
            self._end_shims()
            self._unmount()
            subprocess.run(["ip", "netns", "delete", self.name], capture_output=True, check=False)
            self._remove_control_groups()
            self._restore_kernel_settings()
            for link in Path("/var/log/containers").glob("*"):
                if str(self.state) in os.readlink(link):
                    link.unlink()
            for result in Path("/var/lib/cni").glob(f"*/{self.name}-*"):
                sandbox = result.name.removeprefix(f"{self.name}-").partition("-")[0]
                for kept in result.parent.glob(f"*-{sandbox}-*"):
                    kept.unlink()
            for folder in ("/var/lib/cni/results", "/var/lib/cni", "/var/log/containers", "/var/log/pods"):
                with contextlib.suppress(OSError):  # others use it, or never did
                    os.rmdir(folder)
            shutil.rmtree(self.state, ignore_errors=True)
            shutil.rmtree(self.runtime, ignore_errors=True)
            self.kubeconfig.unlink(missing_ok=True)

    def purge(self) -> None:
        """What ``down`` does, and the caches of this node too."""
        self.down()
        shutil.rmtree(self.home, ignore_errors=True)

    # -- starting ----------------------------------------------------------------------------------------------------

    def _start(self, binary: Path, pause: Path) -> None:
        for folder in ("pki", "cni", "cni-data", "pod-logs", "flexvolume"):
            (self.state / folder).mkdir(parents=True, exist_ok=True)
        self.runtime.mkdir(exist_ok=True)
        self._make_network()
        self._make_control_group()
        self._save_kernel_settings()
        port = self._free_port()
        self._write_credentials(port)
        for name, content in self._configuration().items():
            (self.state / name).write_text(content)
        for name, command in self._first_services(binary, port).items():
            self.processes.start(name, command, cwd=self.state)
        self._wait("containerd", self.socket.exists)
        self._remove_containers()  # left by a machine that went down under a running node
        self._remove_replaced_images()
        self._load_pause(pause)
        self._wait("the API server", self._api_answers)
        for name, command in self._second_services(binary).items():
            self.processes.start(name, command, cwd=self.state)
        self._wait("the node's registration", lambda: bool(self.kubectl("get", "nodes", "-o", "name").strip()))
        self.kubectl("wait", "--for=condition=Ready", f"node/{self.name}", "--timeout=60s")
        # Pods are refused until the controllers have made the namespace's account.
        self._wait("the service account", lambda: bool(self.kubectl("get", "serviceaccount", "default", "-o", "name")))

    def _make_network(self) -> None:
        network = ["ip", "-n", self.name]
        run(["ip", "netns", "add", self.name], hint="A node needs to make network namespaces (CAP_SYS_ADMIN).")
        run([*network, "link", "set", "lo", "up"])
        run([*network, "addr", "add", f"{NODE_IP}/32", "dev", "lo"])
        run([*network, "link", "add", "cni0", "type", "bridge"])
        run([*network, "addr", "add", POD_GATEWAY, "dev", "cni0"])
        run([*network, "link", "set", "cni0", "up"])
        # kube-proxy rewrites service addresses, but only of packets that have a route in the first place.
        run([*network, "route", "add", SERVICE_NETWORK, "dev", "cni0"])
        run(self._inside(["sysctl", "-qw", "net.ipv4.ip_forward=1"]))

    def _free_port(self) -> int:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.wanted_port))
            except OSError:
                probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    def _write_credentials(self, port: int) -> None:
        pki = self.state / "pki"
        names = ["localhost", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        addresses = ["127.0.0.1", SERVICE_IP, NODE_IP]
        alternatives = ",".join([f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses])
        (pki / "extensions").write_text(f"subjectAltName={alternatives}\n")
        days = ["-days", "3650"]
        new_key = ["-newkey", "rsa:2048", "-nodes", "-keyout"]
        authority = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
        for command in (
            ["genrsa", "-out", "accounts.key", "2048"],
            ["rsa", "-in", "accounts.key", "-pubout", "-out", "accounts.pub"],
            ["req", "-x509", *new_key, "ca.key", "-out", "ca.crt", "-subj", f"/CN={self.name}", *days],
            ["req", *new_key, "api.key", "-out", "api.csr", "-subj", "/CN=kube-apiserver"],
            ["x509", "-req", "-in", "api.csr", *authority, *days, "-out", "api.crt", "-extfile", "extensions"],
        ):
            run(["openssl", *command], cwd=pki)
        accounts = {
            "admin": ("admin", "system:masters"),
            "dns": ("dns", "system:masters"),
            "controllers": ("system:kube-controller-manager", ""),
            "scheduler": ("system:kube-scheduler", ""),
            "proxy": ("system:kube-proxy", ""),
            "node": (f"system:node:{self.name}", "system:nodes"),
        }
        rows = []
        for name, (user, group) in accounts.items():
            token = secrets.token_hex(16)
            rows.append([token, user, name, *([group] if group else [])])
            self._write_kubeconfig(self.state / f"{name}.kubeconfig", token, 6443)
            if name == "admin":
                self._write_kubeconfig(self.kubeconfig, token, port)
        with open(self.state / "tokens.csv", "w", opener=_private) as file:
            csv.writer(file).writerows(rows)

    def _write_kubeconfig(self, path: Path, token: str, port: int) -> None:
        server = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(self.state / "pki" / "ca.crt")}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": self.name, "cluster": server}],
            "users": [{"name": self.name, "user": {"token": token}}],
            "contexts": [{"name": self.name, "context": {"cluster": self.name, "user": self.name}}],
            "current-context": self.name,
        }
        with open(path, "w", opener=_private) as file:
            json.dump(config, file, indent=1)  # JSON is YAML

    def _configuration(self) -> dict[str, str]:
        kubelet = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_IP,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.name}",
            "clusterDNS": [NODE_IP],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "eventRecordQPS": 0,
            "evictionHard": {"memory.available": "200Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "failCgroupV1": False,
            "failSwapOn": False,
            "imageMinimumGCAge": "24h",
            "kubeAPIBurst": 1000,
            "kubeAPIQPS": 500,
            "maxPods": 500,
            "podLogsDir": str(self.state / "pod-logs"),
            "registryPullQPS": 0,
            "resolvConf": "",
            "volumePluginDir": str(self.state / "flexvolume"),
        }
        ranges = [[{"subnet": POD_NETWORK}]]
        routes = [{"dst": "0.0.0.0/0"}]
        addresses = {"type": "host-local", "dataDir": str(self.state / "cni-data"), "ranges": ranges, "routes": routes}
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        network: dict[str, Any] = {"cniVersion": "1.0.0", "name": self.name, "plugins": [bridge, ports]}
        return {
            "kubelet.yaml": json.dumps(kubelet, indent=1),
            "cni/10-bridge.conflist": json.dumps(network, indent=1),
            "Corefile": CORE_DNS.format(address=NODE_IP, kubeconfig=self.state / "dns.kubeconfig", name=self.name),
            "containerd.toml": CONTAINERD.format(
                root=self.images,
                state=self.runtime / "containerd",
                socket=self.socket,
                pause=PAUSE,
                cni=self.state / "cni",
            ),
        }

    def _first_services(self, binary: Path, port: int) -> dict[str, list[str]]:
        etcd: Words = [
            binary,
            "etcd",
            "--data-dir=etcd",
            "--unsafe-no-fsync",
            "--listen-peer-urls=http://127.0.0.1:2380",
        ]
        etcd += ["--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379"]
        api: Words = [binary, "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0"]
        api += [f"--advertise-address={NODE_IP}", "--secure-port=6443", f"--service-cluster-ip-range={SERVICE_NETWORK}"]
        api += ["--tls-cert-file=pki/api.crt", "--tls-private-key-file=pki/api.key", "--token-auth-file=tokens.csv"]
        api += ["--service-account-key-file=pki/accounts.pub", "--service-account-signing-key-file=pki/accounts.key"]
        api += ["--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--allow-privileged=true"]
        api += ["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"]
        # By address: the machine cannot resolve the node's name, which exec, logs and port-forward would ask for.
        api += ["--kubelet-preferred-address-types=InternalIP"]
        relay = self.runtime / "api.sock"
        listen = f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"
        return {
            "etcd": self._inside(etcd),
            "containerd": self._inside(["containerd", "-c", "containerd.toml"]),
            "apiserver": self._inside(api),
            "relay-inside": self._inside(["socat", f"UNIX-LISTEN:{relay},fork", "TCP:127.0.0.1:6443"]),
            "relay-outside": ["socat", listen, f"UNIX-CONNECT:{relay}"],
        }

    def _second_services(self, binary: Path) -> dict[str, list[str]]:
        fast = ["--leader-elect=false", "--kube-api-qps=500", "--kube-api-burst=1000"]
        controllers: Words = [binary, "kube-controller-manager", "--kubeconfig=controllers.kubeconfig", *fast]
        controllers += ["--service-account-private-key-file=pki/accounts.key", "--root-ca-file=pki/ca.crt"]
        controllers += ["--use-service-account-credentials"]
        kubelet: Words = [binary, "kubelet", "--kubeconfig=node.kubeconfig", "--config=kubelet.yaml"]
        kubelet += [f"--hostname-override={self.name}", f"--node-ip={NODE_IP}", f"--root-dir={self.state / 'kubelet'}"]
        proxy: Words = [binary, "kube-proxy", "--kubeconfig=proxy.kubeconfig", "--proxy-mode=iptables"]
        proxy += [f"--cluster-cidr={POD_NETWORK}", f"--hostname-override={self.name}"]
        # The machine's own connection tracking limits are not a container's to change.
        proxy += ["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"]
        proxy += ["--conntrack-tcp-timeout-close-wait=0"]
        return {
            "controllers": self._inside(controllers),
            "scheduler": self._inside([binary, "kube-scheduler", "--kubeconfig=scheduler.kubeconfig", *fast]),
            "kubelet": self._inside(kubelet),
            "proxy": self._inside(proxy),
            "dns": self._inside([binary, "coredns", "-conf", "Corefile"]),
        }

    def _inside(self, command: Sequence[str | Path]) -> list[str]:
        # Not `ip netns exec`, which mounts a new /sys and so hides the control groups from the kubelet.
        return ["nsenter", f"--net={self._namespace()}", *(str(word) for word in command)]

    def _namespace(self) -> Path:
        return Path("/run/netns") / self.name

    def _api_answers(self) -> bool:
        try:
            self.kubectl("get", "--raw", "/readyz", "--request-timeout=5s")
        except ClusterError:
            return False
        return True

    def _wait(self, what: str, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(ClusterError):
                if condition():
                    return
            ended = [name for name, runs in self.processes.alive().items() if not runs]
            if ended or time.monotonic() > deadline:
                said = "\n".join(f"{name}: {self.processes.log(name)}" for name in ended)
                raise ClusterError(f"{what} is not up after {seconds:.0f} s; logs: {self.processes.folder}\n{said}")
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
        return ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *words]

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

    def _end_shims(self) -> None:
        """End containerd's shims that are left; they name our containerd's socket in their arguments."""
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    if "containerd-shim" in words[0] and any(word.startswith(str(self.socket)) for word in words):
                        os.kill(int(folder.name), signal.SIGKILL)

    def _unmount(self) -> None:
        ours = (f"{self.state}/", f"{self.runtime}/", f"{self.images}/")
        points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for point in sorted((point for point in points if point.startswith(ours)), reverse=True):
            subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)

    def _control_groups(self) -> list[Path]:
        root = Path("/sys/fs/cgroup")
        if (root / "cgroup.controllers").exists():
            return [root / self.name]
        return [mount / self.name for mount in root.iterdir() if mount.is_dir() and not mount.is_symlink()]

    def _make_control_group(self) -> None:
        for group in self._control_groups():
            group.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):  # empty in a new group of version 1, which forbids processes
                if (group / setting).exists() and (group.parent / setting).exists():
                    (group / setting).write_text((group.parent / setting).read_text())

    def _remove_control_groups(self) -> None:
        for top in self._control_groups():
            groups = [*top.rglob("*/"), top] if top.exists() else []
            for group in sorted(groups, key=lambda path: len(path.parts), reverse=True):
                for _ in range(20):  # a group stays busy for a moment after its last process has ended
                    with contextlib.suppress(OSError):
                        group.rmdir()
                    if not group.exists():
                        break
                    time.sleep(0.05)

    def _save_kernel_settings(self) -> None:
        settings = {name: (Path("/proc/sys") / name).read_text() for name in KERNEL_SETTINGS}
        (self.state / "kernel-settings.json").write_text(json.dumps(settings))

    def _restore_kernel_settings(self) -> None:
        saved = self.state / "kernel-settings.json"
        if saved.exists():
            for name, value in json.loads(saved.read_text()).items():
                with contextlib.suppress(OSError):
                    (Path("/proc/sys") / name).write_text(value)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


CORE_DNS = """.:53 {{
  bind {address}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig} {name}
  }}
  cache 5
}}
"""

CONTAINERD = """version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Lowering a pause container's oom_score_adj needs a capability that a container as host may not have.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""
