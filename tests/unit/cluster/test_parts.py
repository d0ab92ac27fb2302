"""The parts of the test bed that need no cluster."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import images, tools
from tests.cluster.oci import full_name
from tests.cluster.processes import Processes, started_at
from tests.cluster.progress import ClusterError, run
from tests.eventual import eventually


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("daskfleet/runtime:0.1.0", "docker.io/daskfleet/runtime:0.1.0"),
        ("busybox", "docker.io/library/busybox:latest"),
        ("localhost/daskfleet/pause:1", "localhost/daskfleet/pause:1"),
        ("quay.io/a/b", "quay.io/a/b:latest"),
        ("host:5000/a", "host:5000/a:latest"),
    ],
)
def test_image_names_are_resolved_as_kubernetes_does(image: str, name: str) -> None:
    assert full_name(image) == name


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26)),
        ("Client Version: v1.32.4-dispatcher\nKustomize Version: v5.5.0", (1, 32)),
        ("nothing", (0, 0)),
    ],
)
def test_versions(said: str, version: tuple[int, int]) -> None:
    assert tools.version_of(said) == version


def test_a_failed_command_shows_its_end_and_a_hint() -> None:
    with pytest.raises(ClusterError, match=r"(?s)status 3. Try again.*\n    the reason"):
        run([sys.executable, "-c", "import sys; print('the reason', file=sys.stderr); sys.exit(3)"], hint="Try again.")


def test_an_absent_command_is_named() -> None:
    with pytest.raises(ClusterError, match="no-such-program is not installed"):
        run(["no-such-program"])


def test_processes_are_ended_with_their_group(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("parent", ["sh", "-c", "sleep 60 & echo $!; wait"], cwd=tmp_path)
    child = int(eventually(lambda: processes.log("parent").strip()))
    assert processes.alive() == {"parent": True}
    processes.stop(["parent"], grace=5)
    assert processes.alive() == {}
    eventually(lambda: started_at(child) is None)


def test_a_process_that_took_over_an_id_is_left_alone(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        (tmp_path / "gone.json").write_text(f'{{"pid": {bystander.pid}, "started": "1"}}')
        processes = Processes(tmp_path)
        assert processes.alive() == {"gone": False}
        processes.stop(["gone"], grace=1)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_every_input_of_an_image_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "ROOT", tmp_path)
    monkeypatch.setattr(images, "base_image_name", lambda builder: "base")
    monkeypatch.setattr(images, "pins", list)
    image = images.Image("x", ("code", "file"))
    (tmp_path / "code" / "__pycache__").mkdir(parents=True)
    (tmp_path / "code" / "a.py").write_text("1")
    (tmp_path / "file").write_text("1")
    first = images.inputs_of(image, "buildah")
    (tmp_path / "code" / "__pycache__" / "a.pyc").write_text("no input")
    (tmp_path / "elsewhere").write_text("no input")
    assert images.inputs_of(image, "buildah") == first
    (tmp_path / "code" / "a.py").write_text("2")
    second = images.inputs_of(image, "buildah")
    (tmp_path / "code" / "b.py").write_text("2")
    third = images.inputs_of(image, "buildah")
    assert len({first, second, third, images.inputs_of(image, "docker")}) == 4
