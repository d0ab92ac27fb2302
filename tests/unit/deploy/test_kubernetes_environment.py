"""The environment of workers: what is asked for, how it gets into a pod, and the program that installs it, run here."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from daskfleet.deploy.kubernetes import install, make_cluster_spec, make_worker_spec
from daskfleet.deploy.kubernetes.environment import FOLDER, load_environment
from daskfleet.versions import mismatches

from tests import channels, wheels


def test_the_image_is_enough_by_default():
    assert load_environment(None) is load_environment("image") is None
    assert "initContainers" not in make_worker_spec()["spec"]


def test_a_requirements_file_is_read_with_those_that_it_includes(tmp_path):
    (tmp_path / "more.txt").write_text("numpy==2.0\n")
    (tmp_path / "requirements.txt").write_text("# comment\n-r more.txt\npandas[excel] >= 2  # why\n--no-index\n")
    found = load_environment(tmp_path / "requirements.txt")
    assert found.content == "numpy==2.0\npandas[excel] >= 2  # why\n--no-index\n"
    assert found.packages == ["numpy", "pandas"]


@pytest.mark.parametrize(
    "line", ["-e .", "./here.whl", "../there", "/abs.whl", "file:///x.whl", "x @ file:///x", "-c c"]
)
def test_what_only_this_machine_has_is_refused(tmp_path, line):
    (tmp_path / "requirements.txt").write_text(f"{line}\n")
    with pytest.raises(ValueError, match="is only on this machine"):
        load_environment(tmp_path / "requirements.txt")


@pytest.mark.parametrize("name", ["environment.toml", "locale", "nothing"])
def test_what_is_no_environment_is_told_what_could_be(name):
    with pytest.raises(ValueError, match=r"a requirements file \(.txt\), a conda environment \(.yml\), 'local'"):
        make_cluster_spec("c", environment=name)


def test_a_file_that_is_not_there_is_an_oserror():
    with pytest.raises(FileNotFoundError):
        make_cluster_spec("c", environment="no/such/requirements.txt")


def test_this_pythons_packages_are_what_is_installed_from_an_index():
    found = load_environment("local")
    assert found.complete and f"pytest=={pytest.__version__}" in found.content.splitlines()
    assert not any(name in found.packages for name in ("daskfleet", "pip", "setuptools"))


def test_content_and_image_decide_what_is_the_same(tmp_path):
    path = tmp_path / "requirements.txt"

    def key(content, image):
        path.write_text(content)
        return load_environment(path).key(image)

    assert key("a\n", "i:1") == key("# b\na\n", "i:1") != key("a\n", "i:2") != key("b\n", "i:2")


def test_workers_find_it_first_and_cannot_change_it(tmp_path):
    (tmp_path / "requirements.txt").write_text("a\n")
    limits = {"limits": {"memory": "1Gi"}}
    worker = make_worker_spec(
        "i:1", env={"PYTHONPATH": "/mine"}, resources=limits, environment=tmp_path / "requirements.txt"
    )
    (init,), (container,) = worker["spec"]["initContainers"], worker["spec"]["containers"]
    key = load_environment(tmp_path / "requirements.txt").key("i:1")
    assert {"name": "PYTHONPATH", "value": f"{FOLDER}/{key}/site:/mine"} in container["env"]
    assert container["volumeMounts"] == [{"name": "daskfleet-environments", "mountPath": FOLDER, "readOnly": True}]
    assert (init["image"], init["resources"], "securityContext" in init) == ("i:1", limits, False)
    assert worker["spec"]["volumes"] == [{"name": "daskfleet-environments", "emptyDir": {}}]


def test_only_a_folder_of_the_node_is_written_as_root(tmp_path):
    (tmp_path / "requirements.txt").write_text("a\n")
    cache = {"hostPath": {"path": "/var/cache/daskfleet"}}
    spec = make_cluster_spec("c", environment=tmp_path / "requirements.txt", environment_cache=cache)
    pod = spec["spec"]["worker"]["spec"]
    assert pod["volumes"] == [{"name": "daskfleet-environments", **cache}]
    assert pod["initContainers"][0]["securityContext"] == {"runAsUser": 0}
    assert "initContainers" not in spec["spec"]["scheduler"]["spec"]  # it imports nothing of its users'
    claim = {"persistentVolumeClaim": {"claimName": "x"}}
    worker = make_worker_spec(environment=tmp_path / "requirements.txt", environment_cache=claim)
    assert "securityContext" not in worker["spec"]["initContainers"][0]


@pytest.fixture
def install_here(tmp_path):
    """Run the init container's program in a folder of this machine."""

    def run(content, name="requirements.txt"):
        path = tmp_path / name
        path.write_text(content)
        (init,) = make_worker_spec(environment=path)["spec"]["initContainers"]
        told = {entry["name"]: entry["value"] for entry in init["env"]} | {"ENVIRONMENT_FOLDER": str(tmp_path / "env")}
        (tmp_path / "env").mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, *init["command"][1:]], env=os.environ | told, capture_output=True, text=True, timeout=300
        )
        return done, tmp_path / "env" / told["ENVIRONMENT_KEY"]

    return run


def test_it_is_installed_once_and_seen_before_what_the_image_has(install_here, tmp_path):
    wheels.build(tmp_path, "colour", "1.0", "name = 'blue'\n")
    content = f"--no-index\n--find-links {tmp_path}\ncolour==1.0\nclick\n"
    done = []
    threads = [threading.Thread(target=lambda: done.append(install_here(content))) for _ in range(2)]
    for thread in threads:  # as two pods of one node do
        thread.start()
    for thread in threads:
        thread.join()
    (first, target), (second, _) = done
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    said = sorted(line for line in (first.stdout + second.stdout).splitlines() if line.startswith("environment "))
    assert said == [f"environment {target.name} is installed", f"environment {target.name} is installed already"]
    code = "import colour, click; print(colour.name, click.__file__)"
    path = os.environ | {"PYTHONPATH": str(target / "site")}
    seen = subprocess.run(
        [sys.executable, "-c", code], env=path, capture_output=True, text=True, timeout=180, check=True
    )
    assert seen.stdout.startswith("blue ") and str(target) not in seen.stdout  # click is the image's own
    (target / "complete").unlink()  # as if it had been killed half way
    assert install_here(content)[0].stdout.endswith(f"environment {target.name} is installed\n")


def test_what_cannot_be_installed_says_so_and_is_tried_again(install_here):
    done, target = install_here("--no-index\nno-such-package\n")
    assert done.returncode == 1 and not (target / "complete").exists()
    assert "No matching distribution found for no-such-package" in done.stderr
    assert done.stderr.endswith("the environment cannot be installed: pip says why above\n")


# In the place of conda's own programs, which are in no package index: takes their command line and leaves a prefix.
MICROMAMBA = """#!/bin/sh
[ "$1 $2 $3 $4 $6" = "env create --yes --prefix --file" ] && grep -q '"numpy=2"' "$7" || exit 2
mkdir -p "$5/conda-meta" "$5/lib" && eval "$MAKE"
"""
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (PYTHON, ""),
        ("python3.7", f"it has python3.7, and the image's workers run {PYTHON}"),
        ("", f"it has no Python, and the image's workers run {PYTHON}"),
        ("exit 1", "micromamba says why above"),
    ],
)
def test_a_conda_environment_is_used_if_it_has_the_images_python(install_here, tmp_path, monkeypatch, made, why):
    (tmp_path / "micromamba").write_text(MICROMAMBA)
    (tmp_path / "micromamba").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    packages = f'"$5/lib/{made}/site-packages"'
    script = f"mkdir -p {packages}; echo 'name = \"blue\"' > {packages}/colour.py" if made.startswith("py") else made
    monkeypatch.setenv("MAKE", script)
    done, target = install_here("dependencies: [numpy=2]\n", "environment.yml")
    assert (done.returncode, (target / "complete").exists()) == ((1, False) if why else (0, True)), done.stderr
    assert why in done.stderr
    assert why or "blue" in (target / "site" / "colour.py").read_text()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("numpy\n", "has no list of dependencies"),
        ("dependencies: [\n", "is no YAML"),
        ("dependencies: [{npm: [x]}]\n", "is no dependency such as numpy=2"),
    ],
)
def test_what_is_no_conda_environment_is_refused_at_once(tmp_path, text, why):
    (tmp_path / "conda.yml").write_text(text)
    with pytest.raises(ValueError, match=why):
        load_environment(tmp_path / "conda.yml")


@pytest.fixture
def without_conda(tmp_path, monkeypatch):
    """No conda is here, and pip finds only what is in the folder that this is."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


def test_an_image_without_conda_gets_a_conda_environment_all_the_same(install_here, without_conda, monkeypatch):
    with monkeypatch.context() as outside:
        outside.delenv("PIP_NO_INDEX")
        wheels.download(without_conda, install.RATTLER)
    wheels.build(without_conda, "shade", "1.0", "name = 'dark'\n")
    channels.build(without_conda / "channel", PYTHON.removeprefix("python"), home=Path(sys.base_prefix, "bin"))
    environment = f"channels: ['file://{without_conda}/channel']\ndependencies: [colour=1.0, pip: [shade]]\n"
    done, target = install_here(environment, "environment.yml")
    assert done.returncode == 0, done.stderr
    code = "import colour, shade; print(shade.name, colour.name)"
    seen = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(target / "site")}, capture_output=True, text=True
    )
    assert seen.stdout == "dark blue\n", seen.stderr
    assert "/noarch/colour-1.0-0.tar.bz2" in done.stdout and "python-3.99" not in done.stdout
    assert sorted(path.name for path in target.parent.iterdir()) == [target.name, f"{target.name}.lock"]
    done, _ = install_here(environment.replace("1.0", "7"), "environment.yml")
    assert done.returncode == 1 and "colour 7" in done.stderr and done.stderr.endswith("rattler says why above\n")


def test_what_conda_needs_is_said_where_it_cannot_be_had(install_here, without_conda):
    done, _ = install_here("dependencies: [numpy]\n", "environment.yml")
    assert done.returncode == 1
    assert "the image has none of micromamba, mamba and conda, and pip cannot install py-rattler" in done.stderr


def test_the_program_stands_alone():
    command = [sys.executable, "-I", "-S", install.__file__]  # without what is installed
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert "KeyError: 'ENVIRONMENT_FOLDER'" in done.stderr  # all its imports were there


def test_packages_of_the_environment_are_compared_too():
    alike = {"python": "3.11.7", "daskfleet": "1", "dask": "1", "cloudpickle": "1", "msgpack": "1"}
    worker = alike | {"scikit-learn": "1.5"}
    assert mismatches(alike | {"scikit-learn": "1.5"}, alike, {"w": worker}) == ""
    assert "scikit-learn  1.6" in mismatches(alike | {"scikit-learn": "1.6"}, alike, {"w": worker})
