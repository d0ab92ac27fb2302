"""crds/: what the API server accepts and what it refuses, by the sentence it says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
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


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All that a schema says, by path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from fields(inner, f"{path}.{name}")
    if "items" in schema and "properties" in schema["items"]:
        for name, inner in schema["items"]["properties"].items():
            yield from fields(inner, f"{path}[].{name}")


@pytest.mark.parametrize("definition", sorted(CRDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_field_is_explained_and_every_rule_has_a_sample(definition: Path) -> None:
    made = yaml.safe_load(definition.read_text())["spec"]
    found = dict(fields(made["versions"][0]["schema"]["openAPIV3Schema"], made["names"]["singular"]))
    assert [path for path, schema in found.items() if not schema.get("description")] == []
    rules = [rule for schema in found.values() for rule in schema.get("x-kubernetes-validations", ())]
    samples = [path.read_text() for path in REFUSED]
    said = [text.splitlines()[0].removeprefix("# refused: ") for text in samples if made["names"]["kind"] in text]
    first_time = [rule["message"] for rule in rules if "oldSelf" not in rule["rule"]]  # others are of edits, see below
    assert [message for message in first_time if not any(words in message for words in said)] == []


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


def test_what_cannot_be_edited_says_so(lab: Namespace) -> None:
    shut, job = cluster_manifest("shut"), yaml.safe_load((MANIFESTS / "upstream" / "job.yaml").read_text())
    shut["spec"]["security"] = {"tls": True}
    adopted = {"cluster": "mine", "adopt": "mine-worker", "worker": {"replicas": 1}}
    head = {"apiVersion": "kubernetes.dask.org/v1", "kind": "DaskWorkerGroup", "metadata": {"name": "mine-default"}}
    made = [shut, job, {**head, "spec": adopted}]
    made += [next(yaml.safe_load_all((CRDS / "samples" / "daskcluster-adopt.yaml").read_text()))]
    made += [
        yaml.safe_load((MANIFESTS / "upstream" / f"{name}.yaml").read_text()) for name in ("workergroup", "autoscaler")
    ]
    lab.apply({"apiVersion": "v1", "kind": "List", "items": made})
    edits: list[tuple[str, str, dict[str, Any], str]] = [
        ("daskworkergroup", "simple-extra", {"cluster": "x"}, "a worker group stays with its cluster"),
        ("daskworkergroup", "mine-default", {"adopt": "x"}, "an adopted group stays with its Deployment"),
        ("daskautoscaler", made[-1]["metadata"]["name"], {"cluster": "x"}, "an autoscaler stays with its cluster"),
        ("daskcluster", "mine", {"adopt": {"scheduler": "other"}}, "adopt cannot be changed"),
        ("daskcluster", "shut", {"security": {"tls": False}}, "security cannot be changed"),
        ("daskcluster", "shut", {"security": None}, "security cannot be changed"),
        ("daskjob", "simple-job", {"cluster": {"spec": {"security": {"tls": True}}}}, "security cannot be changed"),
    ]
    for kind, name, edit, sentence in edits:
        patch = ["kubectl", "-n", lab.name, "patch", kind, name, "--type=merge", "-p", json.dumps({"spec": edit})]
        done = subprocess.run(patch, capture_output=True, text=True, check=False)
        assert sentence in done.stderr, (kind, name, done.stderr)
