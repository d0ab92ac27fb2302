"""``make demo``: from nothing to a real job on a real Kubernetes, by the commands that a user would type."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import Cluster, NoKubernetes, find, images, project, tools
from .progress import ClusterError, say, step

NAME = "flights"
GROUP = f"{NAME}-default"
WORKERS, MORE_WORKERS = 2, 4
NAMESPACE = "default"
JOB = project.ROOT / "sdk" / "examples" / "flights.py"


def main() -> int:
    started = time.monotonic()
    try:
        cluster = find()
        say(f"using {cluster.description}")
        with cluster.lock():
            cluster.up()
            images.provide(cluster)
            project.apply_definitions(cluster)
            project.start_operator(cluster)
        say(f"Kubernetes and the operator are there after {time.monotonic() - started:.1f} s")
        run_job(cluster, NAMESPACE)
        scale(cluster, NAMESPACE)
        _close(cluster, time.monotonic() - started)
    except (NoKubernetes, ClusterError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; `make down` takes down what was started")
        return 130
    return 0


def run_job(cluster: Cluster, namespace: str) -> None:
    """Make the cluster of the sample and run the job on it."""
    _shown(cluster, namespace, "apply", "-f", str(project.SAMPLE.relative_to(project.ROOT)))
    replicas = _replicas(cluster, namespace)
    if replicas not in (None, WORKERS):
        say(f"{NAME} is there from an earlier time, with {replicas} workers")
        _shown(cluster, namespace, "scale", "daskworkergroup", GROUP, f"--replicas={WORKERS}")
    job = JOB.relative_to(project.ROOT)
    print(f"\n$ python {job}", flush=True)
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
    command = [sys.executable, str(job), "--name", NAME, "--namespace", namespace, "--workers", str(WORKERS)]
    done = subprocess.run(command, cwd=project.ROOT, env=environment, check=False)
    if done.returncode:
        raise ClusterError(f"{job} ended with status {done.returncode}")
    _shown(cluster, namespace, "get", "pods", "-l", f"dask.org/cluster-name={NAME}", "-o", "wide")


def scale(cluster: Cluster, namespace: str) -> None:
    """Add workers by kubectl and tell of each as the scheduler gets to know it."""
    before = _registered(cluster, namespace)
    _shown(cluster, namespace, "scale", "daskworkergroup", GROUP, f"--replicas={MORE_WORKERS}")
    started = time.monotonic()
    seen = set(before)
    with step(f"waiting for {MORE_WORKERS} workers"):
        while len(seen) < MORE_WORKERS:
            for name in sorted(set(_registered(cluster, namespace)) - seen):
                seen.add(name)
                print(f"  {name} has joined after {time.monotonic() - started:.1f} s", flush=True)
            if time.monotonic() - started > 60:
                pods = cluster.kubectl("-n", namespace, "get", "pods", "-l", f"dask.org/cluster-name={NAME}")
                raise ClusterError(f"only {len(seen)} of {MORE_WORKERS} workers came within 60 s\n{pods}")
            time.sleep(0.1)
    _shown(cluster, namespace, "get", "daskclusters,daskworkergroups")


def _close(cluster: Cluster, seconds: float) -> None:
    kubectl = "kubectl" if shutil.which("kubectl") == tools.kubectl() else tools.kubectl()
    print(f"""
The demo took {seconds:.0f} s. The cluster stays up:
  export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}
  {kubectl} get daskclusters,daskworkergroups,pods
  {kubectl} port-forward service/{NAME}-scheduler 8787    and open http://localhost:8787/status
  {Path(sys.executable).parent / "python"} {JOB.relative_to(project.ROOT)}
To take it down: make down""")


def _registered(cluster: Cluster, namespace: str) -> list[str]:
    """The names of the workers that the scheduler knows, asked of its HTTP API through the API server."""
    service = f"/api/v1/namespaces/{namespace}/services/{NAME}-scheduler:8787/proxy"
    said = json.loads(cluster.kubectl("get", "--raw", f"{service}/api/v1/get_workers"))
    return [worker["name"] for worker in said["workers"]]


def _replicas(cluster: Cluster, namespace: str) -> int | None:
    """How many workers the group is to have; None while there is no group."""
    path = "jsonpath={.spec.worker.replicas}"
    said = cluster.kubectl("-n", namespace, "get", "daskworkergroup", GROUP, "--ignore-not-found", "-o", path)
    return int(said) if said.strip() else None


def _shown(cluster: Cluster, namespace: str, *words: str) -> None:
    """Run kubectl as a user would, showing the command and what it says."""
    words = words if namespace == NAMESPACE else ("-n", namespace, *words)
    print(f"\n$ kubectl {shlex.join(words)}", flush=True)
    print(cluster.kubectl(*words).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
