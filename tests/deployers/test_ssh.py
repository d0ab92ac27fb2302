"""SSHCluster and dask-ssh on three real SSH servers, as root and as somebody without privileges."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daskfleet import Client
from daskfleet.deploy import registry
from daskfleet.deploy.ssh import SSHCluster, expand_hosts
from daskfleet.exceptions import DaskfleetError

from tests.deployers.beds import ssh
from tests.deployers.beds.tools import processes_of_cluster

HOSTS = list(ssh.HOSTS)
SCHEDULER = {"host": HOSTS[0], "dashboard_address": ":0"}


@pytest.fixture(scope="module")
def bed() -> Iterator[ssh.Bed]:
    with (
        tempfile.TemporaryDirectory(prefix="daskfleet-ssh-", dir="/tmp") as folder,
        ssh.servers(ssh.public_folder(Path(folder))) as servers,
    ):
        yield servers


def remains(bed: ssh.Bed) -> list[str]:
    return [line for line in processes_of_cluster(bed.marker) if "sshd" not in line]


def login(bed: ssh.Bed, who: str) -> dict[str, object]:
    """Keyword arguments for a cluster of this login."""
    name = bed.user.pw_name if who == "normal" else "root"
    python = bed.user_python if who == "normal" else sys.executable
    return {"connect_options": bed.connect_options(name), "remote_python": python}


def test_expand_hosts() -> None:
    assert expand_hosts("192.168.0.{1,2,3,4}") == [f"192.168.0.{i}" for i in (1, 2, 3, 4)]
    assert expand_hosts("node{08..11}") == ["node08", "node09", "node10", "node11"]
    assert expand_hosts("r{1,2}n{1,2}") == ["r1n1", "r1n2", "r2n1", "r2n2"]
    assert expand_hosts("node[1-2,7]") == ["node1", "node2", "node7"]
    assert expand_hosts("[::1]") == ["[::1]"]
    assert expand_hosts("login") == ["login"]
    with pytest.raises(ValueError, match="braces do not match"):
        expand_hosts("node{1,2")


def test_hosts_and_lists_are_checked_before_anything_is_started() -> None:
    with pytest.raises(ValueError, match="give hosts"):
        SSHCluster([])
    with pytest.raises(RuntimeError, match="connect_options has 1 entries for 2 hosts"):
        SSHCluster(["a", "b"], connect_options=[{}])
    with pytest.raises(RuntimeError, match="remote_python has 3 entries for 2 hosts"):
        SSHCluster(["a", "b"], remote_python=["a", "b", "c"])


@pytest.mark.parametrize("who", ["root", "normal"])
def test_a_cluster_of_three_hosts(bed: ssh.Bed, who: str, eventually) -> None:
    with (
        SSHCluster(HOSTS, scheduler_options=SCHEDULER, worker_options={"nthreads": 1}, **login(bed, who)) as cluster,
        Client(cluster) as client,
    ):
        uid = 0 if who == "root" else bed.user.pw_uid
        assert set(client.run(os.getuid).values()) == {uid}
        assert client.gather(client.map(lambda i: i + 1, range(100))) == list(range(1, 101))
        assert cluster.scheduler_address.startswith(f"tcp://{HOSTS[0]}:")
        assert [entry.name for entry in registry.entries()] == [cluster.name], "daskfleet list shows it"
        with SSHCluster.from_name(cluster.name) as again:
            assert again.observed == cluster.observed == {"0", "1"}
        logs = cluster.get_logs()
        assert "registered" in logs["Scheduler"] and "registered with the scheduler" in logs["0"]
        token = cluster.security.token
        assert token and not any(token in line for line in processes_of_cluster(bed.marker)), (
            "the token is on no command line"
        )
    eventually(lambda: not remains(bed))
    assert registry.entries() == []


def test_several_workers_a_host_and_scale_over_the_pool(bed: ssh.Bed, eventually) -> None:
    with SSHCluster(
        [HOSTS[0], "127.0.0.{3,4}"],
        connect_options=[bed.connect_options()] * 3,
        scheduler_options=SCHEDULER,
        worker_options={"nthreads": 1, "n_workers": 2, "memory_limit": "500MB"},
        remote_python=[sys.executable] * 3,
    ) as cluster:
        cluster.wait_for_workers(4, timeout=180)
        assert cluster.observed == {"0-0", "0-1", "1-0", "1-1"}
        cluster.scale(memory="4GB")
        cluster.wait_for_workers(8, timeout=180)
        hosts = [spec["options"]["place"].host for spec in cluster.worker_spec.values()]
        assert sorted(hosts) == sorted([HOSTS[1], HOSTS[2]] * 2), "spread evenly"
        cluster.scale(2)
        eventually(lambda: len(cluster.scheduler_info["workers"]) == 2)
    eventually(lambda: not remains(bed))


def test_adaptive(bed: ssh.Bed, eventually) -> None:
    import time

    options = {"scheduler_options": SCHEDULER, "worker_options": {"nthreads": 1}}
    with SSHCluster(HOSTS, **options, **login(bed, "root")) as cluster, Client(cluster) as client:
        cluster.adapt(minimum=0, maximum=3, interval=0.2)
        eventually(lambda: not cluster.scheduler_info["workers"])
        futures = client.map(time.sleep, [1] * 12, pure=False)
        eventually(lambda: len(cluster.scheduler_info["workers"]) == 3)
        client.gather(futures)
        with pytest.raises(ValueError, match="scaling by memory needs worker_options with memory_limit"):
            cluster.scale(memory="1GB")


LEFT = """
import sys, time
from daskfleet import Client
from daskfleet.deploy.ssh import SSHCluster
import subprocess
options = dict(scheduler_options={scheduler!r}, worker_options=dict(nthreads=1, n_workers=2))
cluster = SSHCluster({hosts!r}, **options, **{login!r})
client = Client(cluster)
def child():
    import subprocess, time
    subprocess.Popen(["sleep", "300"])
    time.sleep(300)
futures = client.map(lambda i: child(), range(4))
time.sleep(1)
print("up", flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("who", ["root", "normal"])
def test_nothing_is_left_when_the_client_is_killed(bed: ssh.Bed, who: str, eventually) -> None:
    program = LEFT.format(hosts=HOSTS, scheduler=SCHEDULER, login=login(bed, who))
    client = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert client.stdout is not None and client.stdout.readline() == "up\n"
        running = remains(bed)
        assert any("sleep" in line for line in running) and len(running) >= 7
        client.send_signal(signal.SIGKILL)
        eventually(lambda: not remains(bed), 90)
    finally:
        client.kill()
        client.wait()


def test_errors_say_the_host_and_what_to_do(bed: ssh.Bed, tmp_path: Path) -> None:
    good = login(bed, "root")
    with pytest.raises(DaskfleetError, match=r"127\.0\.0\.2: cannot log in: .*connect_options"):
        SSHCluster(HOSTS, connect_options=bed.connect_options("nobody"))
    unknown = {**bed.connect_options(), "known_hosts": str(tmp_path / "none")}
    (tmp_path / "none").touch()
    with pytest.raises(DaskfleetError, match="key is not known"):
        SSHCluster(HOSTS, connect_options=unknown)
    with pytest.raises(DaskfleetError, match=r"127\.0\.0\.2: cannot connect by SSH: .*refused"):
        SSHCluster(HOSTS, connect_options={**bed.connect_options(), "port": 1})
    with pytest.raises(DaskfleetError, match=r"127\.0\.0\.2: /no/python ended with status 127"):
        SSHCluster(HOSTS, **{**good, "remote_python": "/no/python"})
    with pytest.raises(DaskfleetError, match=r"127\.0\.0\.3: .*nosuch"):
        SSHCluster(HOSTS, scheduler_options=SCHEDULER, worker_class="daskfleet.nosuch", **good)


def dask_ssh(bed: ssh.Bed, *arguments: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "daskfleet.cli.ssh",
        "--ssh-port",
        str(bed.port),
        "--ssh-private-key",
        str(bed.key),
    ]
    command += ["--ssh-known-hosts", str(bed.known_hosts), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_dask_ssh_with_brace_groups_and_logs(bed: ssh.Bed, tmp_path: Path, free_port: int, eventually) -> None:
    command = dask_ssh(
        bed, "127.0.0.{2,3,4}", "--scheduler", "127.0.0.2", "--scheduler-port", str(free_port), "--nprocs", "2",
        "--nthreads", "1", "--ssh-username", "root", "--nohost", "--log-directory", str(tmp_path / "logs"),
        "--memory-limit", "1GB", "--local-directory", f"{tmp_path}/local", "--remote-python", sys.executable,
        "--worker-port", "20000:30000", "--nanny-port", "0", "--remote-dask-worker", "daskfleet.cli.worker",
    )  # fmt: skip
    try:
        assert command.stdout is not None
        name = next(match[1] for line in command.stdout if (match := re.search(r"from_name\('(.*)'\)", line)))
        from daskfleet.deploy.spec import SpecCluster

        with SpecCluster.from_name(name) as cluster, Client(cluster) as client:
            cluster.wait_for_workers(6, timeout=180)
            workers = client.scheduler_info()["workers"].values()
            assert {w["memory_limit"] for w in workers} == {10**9} and {w["nthreads"] for w in workers} == {1}
            assert {w["name"] for w in workers} == {f"{host}-{n}-{i}" for n, host in enumerate(HOSTS) for i in (0, 1)}
            assert all(20000 <= int(w["address"].rpartition(":")[2]) <= 30000 for w in workers)
            assert all(w["local_directory"].startswith(str(tmp_path / "local")) for w in workers)
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=90)
        assert command.returncode == 0
    finally:
        command.kill()
        command.wait()
    eventually(lambda: not remains(bed))
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert len(logs) == 4
    assert f":{free_port}" in logs[f"dask_scheduler_127.0.0.2_{free_port}.log"]
    assert "registered with the scheduler" in logs["dask_worker_127.0.0.3_1.log"]


def test_dask_ssh_hostfile_with_options_of_each_host(bed: ssh.Bed, tmp_path: Path, free_port: int, eventually) -> None:
    hostfile = tmp_path / "hosts"
    user = f"user={bed.user.pw_name} python={bed.user_python}"
    hostfile.write_text(f"# the scheduler's\n127.0.0.2 nthreads=1\n\n127.0.0.{{3,4}} {user} nworkers=2 nthreads=3\n")
    command = dask_ssh(
        bed, "--hostfile", str(hostfile), "--scheduler-port", str(free_port), "--remote-python", sys.executable
    )
    try:
        assert command.stdout is not None
        name = next(match[1] for line in command.stdout if (match := re.search(r"from_name\('(.*)'\)", line)))
        from daskfleet.deploy.spec import SpecCluster

        with SpecCluster.from_name(name) as cluster, Client(cluster) as client:
            cluster.wait_for_workers(5, timeout=180)
            workers = client.scheduler_info()["workers"]
            uids = client.run(os.getuid)
            threads = sorted((w["host"], w["nthreads"], uids[address]) for address, w in workers.items())
            uid = bed.user.pw_uid
            assert threads == [(HOSTS[0], 1, 0), *[(HOSTS[1], 3, uid)] * 2, *[(HOSTS[2], 3, uid)] * 2]
        command.send_signal(signal.SIGKILL)  # nothing is left then either
        command.wait()
    finally:
        command.kill()
        command.wait()
    eventually(lambda: not remains(bed))


def test_dask_ssh_says_what_is_wrong(bed: ssh.Bed, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("node1\nnode2 speed=9\n")
    output, _ = (command := dask_ssh(bed, "--hostfile", str(tmp_path / "hosts"))).communicate(timeout=90)
    assert command.returncode == 1 and output.startswith(
        "Error: line 2 of the host file: 'speed=9': expected one of user="
    )
    output, _ = (command := dask_ssh(bed)).communicate(timeout=90)
    assert command.returncode == 2 and "no hosts: name them" in output
    output, _ = (command := dask_ssh(bed, "127.0.0.2", "--remote-python", "/no/python")).communicate(timeout=90)
    assert command.returncode == 1 and "127.0.0.2: /no/python ended with status 127" in output
