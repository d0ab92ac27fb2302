"""crds/: what the API server accepts and what it refuses, by the sentence it says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from operator_bed import MANIFESTS, Namespace, cluster_manifest

CRDS = Path(__file__).parents[2] / "crds"
UPSTREAM = sorted((MANIFESTS / "upstream").glob("*.yaml"))
REFUSED = sorted((MANIFESTS / "refused").glob("*.yaml"))


@pytest.fixture(scope="module")
def lab(kubernetes_api: Any, module_namespace: str) -> Namespace:
    return Namespace(kubernetes_api, module_namespace)


def test_all_definitions_are_small() -> None:
    assert sum(path.stat().st_size for path in CRDS.glob("*.yaml")) < 100_000


@pytest.mark.parametrize("manifest", REFUSED, ids=lambda path: path.stem)
def test_invalid_manifests_are_refused_with_a_sentence(lab: Namespace, manifest: Path) -> None:
    said = manifest.read_text().splitlines()[0].removeprefix("# refused: ")
    command = ["kubectl", "-n", lab.name, "apply", "-f", str(manifest)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # KUBECONFIG is the fixture's
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize("manifest", UPSTREAM, ids=lambda path: path.stem)
def test_manifests_for_dask_kubernetes_apply_unchanged_and_whole(lab: Namespace, manifest: Path) -> None:
    lab.apply(manifest)
    wanted = yaml.safe_load(manifest.read_text())
    kept = lab.get(wanted["kind"], wanted["metadata"]["name"])
    assert contains(kept["spec"], wanted["spec"]) == []


def contains(kept: Any, wanted: Any, path: str = "") -> list[str]:
    """Paths in `wanted` that `kept` lacks or has otherwise."""
    if isinstance(wanted, dict):
        return [lost for key in wanted for lost in contains(kept.get(key), wanted[key], f"{path}.{key}")]
    if isinstance(wanted, list):
        pairs = zip(kept, wanted, strict=True)
        return [lost for n, (a, b) in enumerate(pairs) for lost in contains(a, b, f"{path}[{n}]")]
    return [] if kept == wanted else [path]


@pytest.mark.parametrize("name", ["daskcluster", "daskcluster-adopt", "daskworkergroup", "daskautoscaler", "daskjob"])
def test_samples_apply(lab: Namespace, name: str) -> None:
    lab.apply(CRDS / "samples" / f"{name}.yaml")


def test_pod_fields_of_the_future_are_kept(lab: Namespace) -> None:
    manifest = cluster_manifest("tomorrow")
    manifest["spec"]["worker"]["spec"]["fieldOfTomorrow"] = {"deep": [1, 2]}
    lab.kubectl("apply", "--validate=false", "-f", "-", input=yaml.safe_dump(manifest))
    assert lab.get("daskcluster", "tomorrow")["spec"]["worker"]["spec"]["fieldOfTomorrow"] == {"deep": [1, 2]}


def test_defaults_and_short_names(lab: Namespace) -> None:
    manifest = cluster_manifest()
    del manifest["spec"]["worker"]["replicas"]
    lab.apply(manifest)
    kept = lab.get("dsk", "lab")
    assert kept["spec"]["worker"]["replicas"] == 1 and kept["spec"]["idleTimeout"] == 0
    header = lab.kubectl("get", "dsk").splitlines()[0].split()
    assert header == ["NAME", "WORKERS", "READY", "STATUS", "AGE"]
    for short, kind, columns in (
        ("daskworkers", "daskworkergroups", ["Workers", "Age"]),
        ("djb", "daskjobs", ["Status", "Number Of Workers", "Age"]),
        ("daskautoscaler", "daskautoscalers", ["Cluster", "Minimum", "Maximum", "Age"]),
    ):
        lab.kubectl("get", short)
        definition = json.loads(lab.kubectl("get", "crd", f"{kind}.kubernetes.dask.org", "-o", "json"))
        shown = definition["spec"]["versions"][0]["additionalPrinterColumns"]
        names = [column["name"] for column in shown if column.get("priority", 0) == 0]
        assert [name for name in names if name in columns] == columns


def test_a_group_stays_with_its_cluster(lab: Namespace) -> None:
    lab.apply(MANIFESTS / "upstream" / "workergroup.yaml")
    patch = ["kubectl", "-n", lab.name, "patch", "daskworkergroup", "simple-extra", "--type=merge", "-p"]
    done = subprocess.run([*patch, '{"spec":{"cluster":"x"}}'], capture_output=True, text=True, check=False)
    assert "a worker group stays with its cluster" in done.stderr


def test_an_adoption_and_security_stay_as_they_are(lab: Namespace) -> None:
    lab.apply(CRDS / "samples" / "daskcluster-adopt.yaml")
    shut = cluster_manifest("shut")
    shut["spec"]["security"] = {"tls": True}
    lab.apply(shut)
    edits = {"mine": {"adopt": {"scheduler": "other"}}, "shut": {"security": {"tls": False}}}
    for name, edit in edits.items():
        patch = ["kubectl", "-n", lab.name, "patch", "daskcluster", name, "--type=merge", "-p"]
        done = subprocess.run([*patch, json.dumps({"spec": edit})], capture_output=True, text=True, check=False)
        assert f"{next(iter(edit))} cannot be changed" in done.stderr
