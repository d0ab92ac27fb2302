"""What the components of a node are told: their command lines, their configuration files, who may do what.

Nothing here touches the machine but `NodeConfig.write`.
"""

from __future__ import annotations

import csv
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .progress import run

NODE_IP = "198.18.255.1"
POD_NETWORK, POD_GATEWAY = "198.18.0.0/17", "198.18.0.1/17"
#: The gateway's hardware address, of the range that is free for all.
BRIDGE = "02:00:00:00:00:01"
SERVICE_NETWORK, SERVICE_IP = "198.19.0.0/16", "198.19.0.1"
PAUSE = "localhost/daskfleet/pause:1"
WITHOUT = (
    "certificatesigningrequest-approving-controller",
    "certificatesigningrequest-cleaner-controller",
    "certificatesigningrequest-signing-controller",
    "cronjob-controller",
    "ephemeral-volume-controller",
    "persistentvolume-attach-detach-controller",
    "persistentvolume-expander-controller",
    "replicationcontroller-controller",
    "selinux-warning-controller",
    "ttl-controller",
)
"""Controllers that nothing here needs. Without them an idle controller manager wakes up half as often."""

Words = list[str]


@dataclass(frozen=True)
class NodeConfig:
    """The configuration of the node ``name``."""

    name: str
    binary: Path
    """With every component but containerd."""
    state: Path
    """The folder of the files of one run; the components' working directory."""
    runtime: Path
    """The folder of their sockets, below ``/run``."""
    images: Path
    """The folder of containerd's images, which outlives a run."""
    kubeconfig: Path
    """For the administrator, outside of the network namespace."""

    @property
    def socket(self) -> Path:
        """containerd's."""
        return self.runtime / "containerd.sock"

    @property
    def namespace(self) -> Path:
        """The network namespace."""
        return Path("/run/netns") / self.name

    def inside(self, command: Sequence[str | Path]) -> Words:
        """A command that runs ``command`` in the network namespace."""
        # Not `ip netns exec`, which mounts a new /sys and so hides the control groups from the kubelet.
        return ["nsenter", f"--net={self.namespace}", *(str(word) for word in command)]

    def _component(self, *words: str) -> Words:
        return self.inside([self.binary, *words])

    def write(self, port: int) -> None:
        """Write every file that the components read, and the administrator's kubeconfig for 127.0.0.1:``port``."""
        for folder in ("pki", "cni", "cni-data", "pod-logs", "flexvolume"):
            (self.state / folder).mkdir(parents=True, exist_ok=True)
        self._write_keys()
        self._write_accounts(port)
        for name, content in self.files().items():
            (self.state / name).write_text(content)

    def first_services(self, port: int) -> dict[str, Words]:
        """The commands of what has to run before anything can be asked of the API, which is relayed to ``port``."""
        etcd = self._component(
            "etcd", "--data-dir=etcd", "--unsafe-no-fsync", "--listen-peer-urls=http://127.0.0.1:2380"
        )
        etcd += ["--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379"]
        etcd += ["--heartbeat-interval=1000", "--election-timeout=10000"]  # it has no peers to hear of it
        api = self._component("kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--bind-address=0.0.0.0")
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
            "etcd": etcd,
            "containerd": self.inside(["containerd", "-c", "containerd.toml"]),
            "apiserver": api,
            "relay-inside": self.inside(["socat", f"UNIX-LISTEN:{relay},fork", "TCP:127.0.0.1:6443"]),
            "relay-outside": ["socat", listen, f"UNIX-CONNECT:{relay}"],
        }

    def second_services(self) -> dict[str, Words]:
        """The commands of all that works through the API."""
        fast = ["--leader-elect=false", "--kube-api-qps=500", "--kube-api-burst=1000"]
        controllers = self._component("kube-controller-manager", "--kubeconfig=controllers.kubeconfig", *fast)
        controllers += ["--service-account-private-key-file=pki/accounts.key", "--root-ca-file=pki/ca.crt"]
        controllers += ["--use-service-account-credentials", "--horizontal-pod-autoscaler-sync-period=1s"]
        controllers.append("--controllers=" + ",".join(["*", *(f"-{name}" for name in WITHOUT)]))
        kubelet = self._component("kubelet", "--kubeconfig=node.kubeconfig", "--config=kubelet.yaml")
        kubelet += [f"--hostname-override={self.name}", f"--node-ip={NODE_IP}", f"--root-dir={self.state / 'kubelet'}"]
        proxy = self._component("kube-proxy", "--kubeconfig=proxy.kubeconfig", "--proxy-mode=iptables")
        proxy += [f"--cluster-cidr={POD_NETWORK}", f"--hostname-override={self.name}"]
        # The machine's own connection tracking limits are not a container's to change.
        proxy += ["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"]
        proxy += ["--conntrack-tcp-timeout-close-wait=0"]
        return {
            "controllers": controllers,
            "scheduler": self._component("kube-scheduler", "--kubeconfig=scheduler.kubeconfig", *fast),
            "kubelet": kubelet,
            "proxy": proxy,
            "dns": self._component("coredns", "-conf", "Corefile"),
        }

    def files(self) -> dict[str, str]:
        """The configuration files, by their names in the state folder."""
        return {
            "kubelet.yaml": json.dumps(self._kubelet(), indent=1),
            "cni/10-bridge.conflist": json.dumps(self._pod_network(), indent=1),
            "Corefile": CORE_DNS.format(address=NODE_IP, kubeconfig=self.state / "dns.kubeconfig", name=self.name),
            "containerd.toml": CONTAINERD.format(
                root=self.images,
                state=self.runtime / "containerd",
                socket=self.socket,
                pause=PAUSE,
                cni=self.state / "cni",
            ),
        }

    def _kubelet(self) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_IP,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.name}",
            "clusterDNS": [NODE_IP],
            "clusterDomain": "cluster.local",
            # Read when a container needs them. The default asks as soon as a pod is placed. The API server, on the same
            # cores as the kubelet here, often does not know of that yet: it refuses, and is asked again later.
            "configMapAndSecretChangeDetectionStrategy": "Get",
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

    def _pod_network(self) -> dict[str, object]:
        ranges = [[{"subnet": POD_NETWORK}]]
        routes = [{"dst": "0.0.0.0/0"}]
        addresses = {"type": "host-local", "dataDir": str(self.state / "cni-data"), "ranges": ranges, "routes": routes}
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
        ports = {"type": "portmap", "capabilities": {"portMappings": True}}
        return {"cniVersion": "1.0.0", "name": self.name, "plugins": [bridge, ports]}

    def _write_keys(self) -> None:
        pki = self.state / "pki"
        names = ["localhost", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        addresses = ["127.0.0.1", SERVICE_IP, NODE_IP]
        alternatives = ",".join([f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses])
        (pki / "extensions").write_text(f"subjectAltName={alternatives}\n")
        days = ["-days", "3650"]
        # Each kubectl begins with the API server's signature, for which RSA takes it two milliseconds.
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"]
        authority = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
        for command in (
            ["genrsa", "-out", "accounts.key", "2048"],
            ["rsa", "-in", "accounts.key", "-pubout", "-out", "accounts.pub"],
            ["req", "-x509", *new_key, "ca.key", "-out", "ca.crt", "-subj", f"/CN={self.name}", *days],
            ["req", *new_key, "api.key", "-out", "api.csr", "-subj", "/CN=kube-apiserver"],
            ["x509", "-req", "-in", "api.csr", *authority, *days, "-out", "api.crt", "-extfile", "extensions"],
        ):
            run(["openssl", *command], cwd=pki)

    def _write_accounts(self, port: int) -> None:
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
