"""What clusters there are, whatever made them, and the ``daskfleet`` command over all of them."""

import gc
import json
import socket
import subprocess
import sys
from types import SimpleNamespace

import daskfleet
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner
from daskfleet import LocalCluster
from daskfleet.cli.clusters import main
from daskfleet.deploy import discovery, registry
from daskfleet.deploy.discovery import Findings, FoundCluster, added, create_cluster, find_cluster, load_documents
from daskfleet.exceptions import ClusterNotFound, DaskfleetError

from tests.eventual import eventually

SMALL = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}


@pytest.fixture(autouse=True)
def _nothing_else_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def listens(address):
    host, _, port = address.removeprefix("tcp://").partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def run(*words, status=0):
    """Run the command: what it says on standard output, or on standard error when it fails."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == status, (result.output, result.exception)
    return result.stderr if status else result.stdout


def test_a_local_cluster_is_listed_looked_into_and_ended(caplog):
    with LocalCluster(name="here", **SMALL) as cluster:
        (shown,) = json.loads(run("list", "-o", "json"))
        expected = {"name": "here", "namespace": None, "type": "LocalCluster", "status": "Running", "workers": 1}
        assert shown.items() >= {**expected, "address": cluster.scheduler_address}.items()
        header, row = run("list").splitlines()
        assert header.split() == ["NAME", "TYPE", "STATUS", "WORKERS", "AGE", "ADDRESS"]
        assert row.split()[:4] == ["here", "LocalCluster", "Running", "1/1"]
        assert run("list", "-o", "name") == "here\n"
        assert run("dashboard", "here").strip() == cluster.dashboard_link
        with caplog.at_level("INFO", logger="daskfleet"):
            cluster.scale(2)
            assert "registered, " in run("logs", "here", "--no-workers")
            assert len(run("logs", "here", "--no-workers", "--tail", 1).splitlines()) == 2
            assert f"==> {next(iter(cluster.scheduler_info['workers']))} <==" in run("logs", "here", "--no-scheduler")
        assert "only by the program that made it, process" in run("scale", "here", 2, status=1)
        assert run("list", "-n", "somewhere", "-o", "name") == ""
        with daskfleet.get_cluster("here") as same, same.get_client() as client:
            assert client.submit(sum, [1, 2]).result() == 3
        assert "from_name('here')" in daskfleet.get_snippet("here")
        assert run("delete", "here") == "here deleted\n"
        eventually(lambda: not listens(cluster.scheduler_address))
    assert daskfleet.list_clusters() == [] and registry.entries() == []


def test_an_unknown_name_is_one_line_with_those_that_there_are():
    with LocalCluster(name="here", **SMALL):
        said = run("delete", "there", status=1)
    assert said == "Error: there is no cluster 'there'; there are: here\n"
    assert run("delete", "there", status=1) == "Error: there is no cluster 'there'; there are none\n"


@pytest.mark.parametrize(
    ("name", "namespace", "found"),
    [("b", None, "x/b"), ("x/a", None, "x/a"), ("a", "y", "y/a"), ("local", None, "local"), ("y/a", "y", "y/a")],
)
def test_a_name_may_leave_its_namespace_out_where_that_is_clear(name, namespace, found):
    assert named().named(name, namespace).name == found


@pytest.mark.parametrize(
    ("name", "namespace", "said"),
    [
        ("a", None, "there are several clusters 'a': say which, x/a or y/a"),
        ("b", "y", "there is no cluster 'y/b'; there are: local, x/a, x/b, y/a; other could not be asked: broken"),
    ],
)
def test_a_name_that_is_not_clear_names_the_choice(name, namespace, said):
    with pytest.raises(ClusterNotFound) as caught:
        named().named(name, namespace)
    assert str(caught.value) == said


def named():
    clusters = [FoundCluster(name, SimpleNamespace) for name in ("x/a", "y/a", "x/b", "local")]
    return Findings(clusters, {"other": "broken"})


THIRD_PARTY = """
class TheirCluster:
    shutdown_on_close = False
    def __init__(self, name):
        self.name = name
    @classmethod
    def from_name(cls, name, asynchronous=False):
        return cls(name)
    def scale(self, n):
        print("SCALED", self.name, n)
    def close(self):
        print("CLOSED", self.name, self.shutdown_on_close)
async def discover():
    yield "theirs", TheirCluster
async def broken():
    raise RuntimeError("their cloud is down")
    yield
"""


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """An installed package with discoverers of its own, one of which fails."""
    (tmp_path / "their_package.py").write_text(THIRD_PARTY)
    about = tmp_path / "their_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[dask_cluster_discovery]\ntheirs = their_package:discover\nbroken = their_package:broken\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("third_party")
def test_other_packages_clusters_are_there_too_and_a_broken_one_hides_none():
    result = CliRunner().invoke(main, ["list", "-o", "name"])
    assert (result.stdout, result.exit_code) == ("theirs\n", 0)
    assert result.stderr == "Warning: broken: their cloud is down\n"
    assert run("scale", "theirs", 3) == "SCALED theirs 3\nCLOSED theirs False\ntheirs scaled to 3\n"
    assert run("delete", "theirs") == "CLOSED theirs True\ntheirs deleted\n"
    methods = daskfleet.list_discovery_methods()
    assert methods.keys() >= {"kubernetes", "daskfleet", "theirs", "broken"}
    assert methods["theirs"]["package"] == "their-package"
    with pytest.raises(DaskfleetError, match="broken: their cloud is down"):
        daskfleet.list_clusters("broken")


def test_a_cluster_is_created_from_dask_ctls_file(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(
        "version: 1\nmodule: daskfleet\nclass: LocalCluster\n"
        "kwargs: {name: made, n-workers: 0, processes: false, dashboard-address: ':0'}\n"
    )
    with create_cluster(path) as cluster:
        assert isinstance(cluster, LocalCluster) and run("list", "-o", "name") == "made\n"
    assert "a LocalCluster is in no namespace" in run("create", "-f", path, "-n", "x", status=1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "describes no cluster"),
        ("[1]", "describes no cluster"),
        ("a: [", "is not YAML"),
        ("kwargs: {}", "'module' is missing; expected version: 1"),
        ("{module: daskfleet, class: NoCluster}", "no attribute 'NoCluster'"),
        ("{apiVersion: v1, kind: Pod}", "the file holds v1 Pod; one DaskCluster of kubernetes.dask.org/v1 is expected"),
    ],
)
def test_a_file_that_describes_no_cluster_is_one_line(tmp_path, content, said):
    path = tmp_path / "spec.yaml"
    path.write_text(content)
    told = run("create", "-f", path, status=1)
    assert said in told and told.count("\n") == 1


def test_documents_that_are_empty_are_skipped(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("---\n---\n{a: 1}\n---\n")
    assert load_documents(path) == [{"a": 1}]


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ([], ["a", "b"], ["a", "b"]),
        (["a"], ["a", "a", "b"], ["a", "b"]),
        (["a", "b", "c"], ["b", "c", "d"], ["d"]),  # the first was dropped meanwhile
        (["a", "b"], ["x"], ["x"]),  # it was started anew
        (["a", "b"], ["a", "b"], []),
    ],
)
def test_lines_that_were_not_there_before(before, now, new):
    assert added(before, now) == new


def test_logs_are_followed(monkeypatch, caplog):
    monkeypatch.setattr(discovery, "FOLLOW", 0.1)
    caplog.set_level("INFO", logger="daskfleet")
    with LocalCluster(name="here", **SMALL) as cluster:
        following = find_cluster("here").follow(workers=False, lines=1)
        assert next(following)[0] == "Scheduler"
        cluster.scale(2)
        assert "registered" in next(line for _, line in following if "registered" in line)
        following.close()


def test_names_are_completed():
    completer = BashComplete(main, {}, "daskfleet", "_DASKFLEET_COMPLETE")
    with LocalCluster(name="here", **SMALL):
        assert [item.value for item in completer.get_completions(["scale"], "he")] == ["here"]
        assert completer.get_completions(["delete"], "x") == []
    assert "_DASKFLEET_COMPLETE=bash_complete" in run("completion", "bash")


def test_help_and_mistakes_import_nothing_slow():
    code = (
        "import sys; from daskfleet.cli.clusters import main\n"
        "try: main(['scale', '--help'], standalone_mode=False)\n"
        "finally: print({'dask', 'kubernetes', 'rich', 'tornado', 'daskfleet.deploy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=True)
    assert done.stdout.splitlines()[-1] == "set()" and "Ask for N workers" in done.stdout


def test_what_was_dropped_without_closing_is_not_listed():
    cluster = LocalCluster(name="dropped", **SMALL)
    del cluster
    gc.collect()
    eventually(lambda: not registry.entries())
