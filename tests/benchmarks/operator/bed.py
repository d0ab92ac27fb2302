"""The bed: simulated nodes beside the node from source, and what can be read about an operator that runs on it.

KWOK plays kubelet for nodes that do not exist: their pods become Running, and go when they are deleted, as fast as the
API server and the scheduler let them. An operator's requests are counted by the API server: a FlowSchema of its own
for the operator's ServiceAccount, of the same priority as what would apply otherwise.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster import tools
from tests.cluster.progress import ClusterError, step
from tests.cluster.source_node import SourceNode

NODES, PODS_PER_NODE = 10, 250
SCHEMA = "daskfleet-bench-operator"
KWOK = "kwok"
STAGES = Path(__file__).with_name("stages.yaml")
ANNOTATION = "kwok.x-k8s.io/node"


@contextmanager
def simulated_nodes(node: SourceNode) -> Iterator[None]:
    """Nodes on which nothing runs, for as long as the context lasts."""
    kwok = tools.kwok()
    with step(f"adding {NODES} simulated nodes"):
        node.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": _nodes()}))
        flags = [f"--kubeconfig={node.config.state / 'admin.kubeconfig'}", "--manage-all-nodes=false"]
        flags += [
            f"--manage-nodes-with-annotation-selector={ANNOTATION}=fake",
            f"--config={STAGES}",
            "--node-lease-duration-seconds=40",
            "-v=ERROR",
        ]
        node.processes.stop([KWOK], grace=5)
        node.processes.start(KWOK, node.config.inside([kwok, *flags]), cwd=node.config.state)
        node.kubectl("wait", "--for=condition=Ready", "--timeout=60s", "nodes", "-l", "type=kwok")
    try:
        yield
    finally:
        node.processes.stop([KWOK], grace=5)
        node.kubectl("delete", "nodes", "-l", "type=kwok", "--ignore-not-found", "--wait=false")


def _nodes() -> list[dict[str, Any]]:
    size = {"cpu": "1000", "memory": "1Ti", "pods": str(PODS_PER_NODE)}
    return [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": f"kwok-{number}",
                "annotations": {ANNOTATION: "fake"},
                "labels": {"type": "kwok", "kubernetes.io/hostname": f"kwok-{number}", "kubernetes.io/os": "linux"},
            },
            "spec": {"taints": [{"key": ANNOTATION, "value": "fake", "effect": "NoSchedule"}]},
            "status": {"capacity": size, "allocatable": size},
        }
        for number in range(NODES)
    ]


def cpu_of_api_server(node: SourceNode) -> float:
    """Seconds of CPU that it has had so far."""
    pid = json.loads((node.processes.folder / "apiserver.json").read_text())["pid"]
    return _cpu(Path(f"/proc/{pid}/stat").read_text())


def _cpu(stat: str) -> float:
    return sum(map(int, stat.rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")


class Watched:
    """An operator that runs in the cluster, as the API server and the kernel see it."""

    def __init__(self, node: SourceNode, namespace: str, name: str) -> None:
        self.node, self.namespace, self.name = node, namespace, name

    def count(self) -> None:
        """From now on count its requests. Both operators' ServiceAccounts are called as their Deployments."""
        account = {"namespace": self.namespace, "name": self.name}
        everything = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": True}
        schema = {
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
            "kind": "FlowSchema",
            "metadata": {"name": SCHEMA},
            "spec": {
                "priorityLevelConfiguration": {"name": "workload-low"},
                "matchingPrecedence": 500,
                "distinguisherMethod": {"type": "ByUser"},
                "rules": [
                    {
                        "subjects": [{"kind": "ServiceAccount", "serviceAccount": account}],
                        "resourceRules": [everything],
                        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                    }
                ],
            },
        }
        self.node.kubectl("apply", "-f", "-", input=json.dumps(schema))

    def requests(self) -> int:
        """Requests so far, watches counted when they begin."""
        metrics = self.node.kubectl("get", "--raw", "/metrics")
        pattern = rf'^apiserver_flowcontrol_dispatched_requests_total{{flow_schema="{SCHEMA}".*}} (\S+)$'
        return int(sum(float(found) for found in re.findall(pattern, metrics, re.MULTILINE)))

    def process(self) -> tuple[float, float]:
        """Of its process: resident memory in megabytes, and the seconds of CPU that it has had so far."""
        words = ["-n", self.namespace, "exec", f"deployment/{self.name}", "--", "cat", "/proc/1/status", "/proc/1/stat"]
        said = self.node.kubectl(*words)
        found = re.search(r"VmRSS:\s+(\d+) kB", said)
        if found is None:
            raise ClusterError("the operator's process says nothing about its memory")
        return int(found[1]) * 1024 / 1e6, _cpu(said)


class Scenario:
    """`scenario` as a child process inside the node's network; it stops after each phase until it is told to go on."""

    def __init__(self, node: SourceNode, namespace: str, *words: str) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.operator.scenario", *words]
        command += [f"--kubeconfig={node.config.state / 'admin.kubeconfig'}", f"--namespace={namespace}"]
        self._process = subprocess.Popen(
            node.config.inside(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def phases(self) -> Iterator[dict[str, Any]]:
        """What it has measured at the end of each phase; it goes on when the next one is asked for."""
        assert self._process.stdin and self._process.stdout and self._process.stderr
        try:
            for line in self._process.stdout:
                yield json.loads(line)
                self._process.stdin.write("\n")
                self._process.stdin.flush()
            if self._process.wait(30):
                said = self._process.stderr.read().strip().splitlines()
                raise ClusterError(said[-1] if said else f"the scenario ended with {self._process.returncode}")
        finally:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
