"""What the tests of the charts share: helm's renderings as objects, and its refusals as text."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import tools

ROOT = Path(__file__).parents[3]
OPERATOR = ROOT / "charts" / "daskfleet-operator"
FIXED = ROOT / "charts" / "daskfleet"
NAMESPACE = "apart"


def helm(*words: object) -> subprocess.CompletedProcess[str]:
    """Run helm; what it says on standard error goes without its remarks on links."""
    done = subprocess.run([tools.helm(), *map(str, words)], capture_output=True, text=True, check=False, timeout=180)
    done.stderr = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("walk.go"))
    return done


def _template(chart: Path, values: dict[str, Any], release: str) -> subprocess.CompletedProcess[str]:
    command = [
        tools.helm(),
        "template",
        release,
        str(chart),
        "-n",
        NAMESPACE,
        "--kube-version",
        "1.34.0",
        "--values",
        "-",
    ]
    given = yaml.safe_dump(values)
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=180)


def render(chart: Path, values: dict[str, Any] | None = None, release: str = "rel") -> dict[tuple[str, str], Any]:
    """The chart's objects by kind and name."""
    done = _template(chart, values or {}, release)
    assert done.returncode == 0, done.stderr
    objects = [found for found in yaml.safe_load_all(done.stdout) if found]
    named = {(found["kind"], found["metadata"]["name"]): found for found in objects}
    assert len(named) == len(objects), "two objects of one kind and name"
    return named


def refusal(chart: Path, values: dict[str, Any], release: str = "rel") -> str:
    """What helm says to values that it refuses."""
    done = _template(chart, values, release)
    assert done.returncode != 0, "helm took them"
    return done.stderr


def pod(deployment: dict[str, Any]) -> dict[str, Any]:
    """The pod's specification in a Deployment or Job."""
    return dict(deployment["spec"]["template"]["spec"])


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    """The one container of a Deployment or Job."""
    [found] = pod(deployment)["containers"]
    return dict(found)


def environment(deployment: dict[str, Any]) -> dict[str, Any]:
    """Variables by name: the value, or where it comes from."""
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container(deployment)["env"]}


def restricted(spec: dict[str, Any]) -> None:
    """Assert that a pod's specification fits the "restricted" pod security standard."""
    context = spec["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"]["type"] == "RuntimeDefault"
    for one in spec["containers"]:
        assert one["securityContext"]["allowPrivilegeEscalation"] is False
        assert one["securityContext"]["capabilities"]["drop"] == ["ALL"]
