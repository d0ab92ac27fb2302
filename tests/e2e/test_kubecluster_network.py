"""Between a laptop and its clusters: proxies, contexts, tokens that end, connections that die, addresses outside."""

import asyncio
import re
import sys

import kubeclusters as bed
import pytest
import yaml
from click.testing import CliRunner
from daskfleet import KubeCluster
from daskfleet.cli.clusters import main as daskfleet_command
from daskfleet.deploy.kubernetes import ClusterNotFound, Forbidden, Unreachable
from daskfleet.deploy.kubernetes.api import Api, resource_path
from daskfleet.deploy.kubernetes.logs import follow_logs

from tests.cluster import tools
from tests.cluster.source_node import SourceNode

ELSEWHERE = "api.daskfleet.invalid"


class Proxy:
    """An HTTP proxy that takes CONNECT, and knows where `ELSEWHERE` is, which no name server does."""

    def __init__(self, host: str, port: int) -> None:
        self._relay = bed.Relay(host, port)
        self.tunnels = 0
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        self._relay.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(f"CONNECT {ELSEWHERE}:443 ".encode()):
            writer.close()
            return
        self.tunnels += 1
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await self._relay._serve(reader, writer)


@pytest.fixture
async def proxy(kubernetes_api, tmp_path, monkeypatch):
    """A proxy, and a kubeconfig whose API server can be reached through it alone."""
    proxy = Proxy(*bed.api_address(kubernetes_api.kubeconfig))
    await proxy.start()
    config = bed.kubeconfig_with(kubernetes_api.kubeconfig, tmp_path / "config", server=f"https://{ELSEWHERE}")
    monkeypatch.setenv("KUBECONFIG", str(config))
    yield proxy
    await proxy.stop()


async def collect(said, into):
    async for pair in said:
        into.append(pair)


async def list_pods(context=None):
    api = await Api.connect(context)
    try:
        return await api.get(resource_path("pods", "default"))
    finally:
        await api.close()


async def test_requests_go_through_the_proxy_of_the_environment(proxy, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("NO_PROXY", "somewhere.else")
    assert (await list_pods())["kind"] == "PodList" and proxy.tunnels == 1
    monkeypatch.setenv("NO_PROXY", ".daskfleet.invalid")
    with pytest.raises(Unreachable, match=rf"{ELSEWHERE} cannot be reached"):
        await list_pods()


@pytest.mark.usefixtures("operator_in_cluster")
async def test_all_of_a_cluster_goes_through_the_proxy_of_the_kubeconfig_and_survives_its_cuts(
    proxy, namespace, tmp_path
):
    config = yaml.safe_load((tmp_path / "config").read_text())
    config["clusters"][0]["cluster"]["proxy-url"] = f"http://127.0.0.1:{proxy.port}"
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    async with KubeCluster(name="c", namespace=namespace, n_workers=1, asynchronous=True) as cluster:
        async with cluster.get_client() as client:
            said: list[tuple[str, str]] = []
            api = await Api.connect()
            following = asyncio.ensure_future(collect(follow_logs(api, namespace, "c"), said))
            kept = await client.scatter([1, 2, 3])
            assert await client.submit(sum, kept) == 6
            seen = proxy.tunnels
            assert seen >= 3  # requests and watches, the scheduler's port, its HTTP port
            running = client.submit(__import__("time").sleep, 1)
            proxy._relay.cut()  # what proxies and load balancers do to connections that are old or idle
            assert await client.gather(running, direct=False) is None
            assert await client.gather(kept) == [1, 2, 3]
            assert await client.submit(sum, [4, 5]) == 9
            assert proxy.tunnels > seen
        await cluster.scale(0)
        async with asyncio.timeout(90):
            while cluster.plan:  # its watches go on as well
                await asyncio.sleep(0.05)

            async def heard_all():
                [(scheduler, log)] = (await cluster.get_logs(cluster=False, workers=False)).items()
                return [line for name, line in said if name == scheduler] == log.splitlines()

            while not await heard_all():  # and so do followed logs, with no line twice and none missing
                await asyncio.sleep(0.1)
        following.cancel()
        await api.close()


def test_contexts_are_chosen_by_name_with_their_own_users_and_namespaces(
    kubernetes_api, namespace, tmp_path, monkeypatch
):
    config = yaml.safe_load(kubernetes_api.kubeconfig.read_text())
    where = {"cluster": config["clusters"][0]["name"]}
    config["users"].append({"name": "nobody", "user": {"token": "expired"}})
    config["contexts"] = [
        {"name": "mine", "context": {**where, "user": config["users"][0]["name"], "namespace": namespace}},
        {"name": "theirs", "context": {**where, "user": "nobody"}},
    ]
    config["current-context"] = "theirs"
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(ClusterNotFound, match=f"no cluster 'c' in namespace '{namespace}'"):
        KubeCluster.from_name("c", context="mine")
    with pytest.raises(Forbidden, match="log in again"):
        KubeCluster.from_name("c")
    said = CliRunner().invoke(daskfleet_command, ["list"])
    assert said.exit_code == 1 and said.stderr.startswith("Warning: kubernetes: ") and "log in again" in said.stderr
    import dask

    with dask.config.set({"kubernetes.context": None}):
        said = CliRunner().invoke(daskfleet_command, ["list", "--context", "mine", "-n", namespace])
        assert (said.exit_code, said.stderr) == (0, f"There are no clusters in namespace {namespace}.\n")


async def test_a_token_file_is_read_again(kubernetes_api, namespace, tmp_path, monkeypatch):
    kubectl = kubernetes_api.kubectl
    kubectl("-n", namespace, "create", "serviceaccount", "user")
    kubectl("-n", namespace, "create", "rolebinding", "u", "--clusterrole=view", f"--serviceaccount={namespace}:user")
    good = kubectl("-n", namespace, "create", "token", "user")
    config = bed.kubeconfig_with(kubernetes_api.kubeconfig, tmp_path / "config", user={"tokenFile": "token"})
    monkeypatch.setenv("KUBECONFIG", str(config))
    pods = resource_path("pods", namespace)
    (tmp_path / "token").write_text(good)
    api = await Api.connect()
    assert (await api.get(pods))["items"] == []
    (tmp_path / "token").write_text("expired")
    with pytest.raises(Forbidden, match="log in again"):
        await api.get(pods)
    (tmp_path / "token").write_text(good)
    assert (await api.get(pods))["items"] == []
    await api.close()


OUTSIDE = """
import json, socket, subprocess, sys, time
from daskfleet import KubeCluster
kubectl = [*sys.argv[1].split(), "-n", {namespace!r}]
with KubeCluster(name="c", namespace={namespace!r}, n_workers=1, scheduler_service_type={kind!r}) as cluster:
    print("first", cluster.scheduler_address)
    if {kind!r} == "LoadBalancer":  # nobody balances here: the node's own address is announced, as a balancer would
        ingress = {{"status": {{"loadBalancer": {{"ingress": [{{"ip": sys.argv[2]}}]}}}}}}
        patch = ["patch", "service", "c-scheduler", "--subresource=status", "--type=merge", "-p", json.dumps(ingress)]
        subprocess.run([*kubectl, *patch], check=True, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 90
        with socket.socket() as probe:
            while probe.connect_ex((sys.argv[2], 8787)):  # until kube-proxy has its rules
                assert time.monotonic() < deadline
                time.sleep(0.05)
    with KubeCluster.from_name("c", namespace={namespace!r}) as again, again.get_client() as client:
        print("then", again.scheduler_address, client.submit(sum, [1, 2]).result(timeout=180))
"""


@pytest.mark.usefixtures("operator_in_cluster")
@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_an_address_outside_is_used_where_the_scheduler_answers_there(
    kind, kubernetes_api, namespace, tmp_path, monkeypatch
):
    if not isinstance(kubernetes_api, SourceNode):
        pytest.skip("only of our own node is it known from where its address can be reached")
    where = "jsonpath={.items[0].status.addresses[?(@.type=='InternalIP')].address}"
    node = kubernetes_api.kubectl("get", "nodes", "-o", where).strip()
    (tmp_path / "script.py").write_text(OUTSIDE.format(namespace=namespace, kind=kind))
    api = kubernetes_api.kubectl("get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}").strip()
    config = bed.kubeconfig_with(kubernetes_api.kubeconfig, tmp_path / "config", server=f"https://{api}")
    monkeypatch.setenv("KUBECONFIG", str(config))
    kubectl = f"{tools.kubectl()} --kubeconfig={config}"
    command = [sys.executable, str(tmp_path / "script.py"), kubectl, node]
    said = tmp_path / "said"
    shell = ["sh", "-c", 'said=$1; shift; exec "$@" >"$said" 2>&1', "sh", str(said), *command]
    status = kubernetes_api.execute(shell)  # from where nodes can be reached
    told = said.read_text()
    assert status == 0, told
    forwarded = r"first tls://127\.0\.0\.1:\d+\n"
    first = forwarded if kind == "LoadBalancer" else rf"first tls://{re.escape(node)}:\d+\n"
    assert re.fullmatch(rf"{first}then tls://{re.escape(node)}:\d+ 3\n", told), told
    assert (":8786 3" in told) == (kind == "LoadBalancer")
