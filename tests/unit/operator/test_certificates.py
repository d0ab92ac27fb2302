"""plan/tls.py and certificates.py: certificates that processes of two generations accept from each other."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from daskfleet_operator import certificates, names
from daskfleet_operator.plan import groups, model, scheduler, secret, tls
from daskfleet_operator.plan.model import Memory
from daskfleet_operator.plan.plan import plan
from operator_builders import KEY, NOW, Json, cluster, group, made_objects, observed, pod

FIRST = "c-tls"


def encrypted(turn: str | None = None) -> Json:
    made = cluster(security={"tls": True})
    if turn is not None:
        made["metadata"]["annotations"] = {names.ROTATE_TLS: turn}
    return made


def variables(container: Json) -> dict[str, Any]:
    return {item["name"]: item.get("value") for item in container["env"]}


def test_every_container_finds_its_certificates_and_a_tls_address() -> None:
    c = encrypted()
    made = groups.named(groups.worker_pod(KEY, c, group(), "cluster.local"), "w")["spec"]
    seen = (made, scheduler.deployment(KEY, c)["spec"]["template"]["spec"])
    for spec in seen:
        sources = [item.get("valueFrom", {}).get("secretKeyRef") for item in spec["containers"][0]["env"]]
        keys = {source["key"] for source in sources if source and source["name"] == FIRST}
        assert keys == {"ca.crt", "tls.crt", "tls.key"}  # and not the authority's
    assert variables(made["containers"][0])["DASK_SCHEDULER_ADDRESS"].startswith("tls://c-scheduler.lab.svc")


def test_without_tls_nothing_is_added() -> None:
    made = groups.worker_pod(KEY, cluster(), group(), "cluster.local")["spec"]
    assert not any("__TLS__" in name for name in variables(made["containers"][0]))
    assert tls.plan_tls(observed(), cluster(), True, NOW) == []


def test_the_secret_is_made_once_and_anew_when_it_is_asked_for() -> None:
    c = encrypted()
    (made,) = tls.plan_tls(observed(c, deployment=None), c, True, NOW)
    assert isinstance(made, model.EnsureTls) and (made.name, made.previous) == (FIRST, "")
    known = Memory(token_ensured=NOW, tls_ensured=(FIRST, NOW))
    assert tls.plan_tls(observed(c, memory=known), c, True, NOW) == []
    running = replace(made_objects(c)["deployment"], tls_secret=FIRST)
    rotated = encrypted("2")
    (anew,) = tls.plan_tls(observed(rotated, deployment=running, memory=known), rotated, True, NOW)
    assert isinstance(anew, model.EnsureTls) and anew.name != FIRST and anew.previous == FIRST and not anew.used


def test_a_secret_that_a_pod_misses_is_made_again_and_what_runs_is_not_forgotten() -> None:
    c = encrypted()
    running = replace(made_objects(c)["deployment"], tls_secret=FIRST)
    trouble = ("ContainerConfigError", f'pod x: the container cannot be started: secret "{FIRST}" not found')
    state = observed(c, (pod(ready=False, trouble=trouble),), deployment=running)
    state = replace(state, memory=replace(state.memory, tls_ensured=(FIRST, NOW)))
    assert tls.plan_tls(state, c, True, NOW + 1) == [] and tls.due_at(state, c) == NOW + secret.AGAIN
    (again,) = tls.plan_tls(state, c, True, NOW + secret.AGAIN)
    assert isinstance(again, model.EnsureTls) and (again.name, again.previous, again.used) == (FIRST, "", True)
    assert tls.plan_tls(state, c, False, NOW + secret.AGAIN) == []  # it was refused a moment ago
    refused = {f"Secret/{FIRST}": model.Refusal("Lost", "no", NOW, 1, 1)}
    state = replace(state, memory=replace(state.memory, refusals=refused))
    assert model.Forget(f"Secret/{FIRST}") in tls.plan_tls(state, encrypted("2"), True, NOW)


def test_a_rotation_rolls_the_workers_and_the_scheduler_last() -> None:
    c, rotated = encrypted(), encrypted("2")
    workers = tuple(pod(template=groups.pod_hash(c, group())) for _ in range(2))
    running = replace(made_objects(c)["deployment"], tls_secret=FIRST)
    known = Memory(token_ensured=NOW, tls_ensured=(str(tls.secret_name(rotated)), NOW))
    seen = replace(observed(rotated, workers), deployment=running, memory=known)
    (trial,) = [action for action in plan(seen, NOW).actions if isinstance(action, model.TryTemplate)]
    assert trial.what == "Template/scheduler"  # it comes before the replacement
    approved = replace(seen, memory=replace(known, approved={trial.what: trial.fingerprint}))
    kinds = {type(action) for action in plan(approved, NOW).actions}
    assert model.CreateWorkers in kinds and model.Replace not in kinds
    fresh = tuple(pod(template=groups.pod_hash(rotated, group())) for _ in range(2))
    replaced = [action for action in plan(replace(approved, pods=fresh), NOW).actions if type(action) is model.Replace]
    assert [action.kind.name for action in replaced] == ["Deployment"]


def context(folder: Path, made: dict[str, bytes], purpose: int) -> ssl.SSLContext:
    for name, content in made.items():
        (folder / name).write_bytes(content)
    found = ssl.SSLContext(purpose)
    found.check_hostname, found.verify_mode = False, ssl.CERT_REQUIRED
    found.load_verify_locations(folder / "ca.crt")
    found.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return found


async def speak(folder: Path, server: dict[str, bytes], client: dict[str, bytes]) -> bytes:
    """What a client with these certificates hears from a server with those."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await writer.drain()
        writer.close()

    listening = context(folder, server, ssl.PROTOCOL_TLS_SERVER)
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=listening) as running:
        port = running.sockets[0].getsockname()[1]
        calling = context(folder, client, ssl.PROTOCOL_TLS_CLIENT)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=calling)
        heard = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return heard


async def test_neighbouring_generations_understand_each_other_and_others_do_not(tmp_path: Path) -> None:
    made = [certificates.make("c", ["c-scheduler"], {})]
    for _ in range(2):
        made.append(certificates.make("c", ["c-scheduler"], made[-1]))
    for old, new in ((made[0], made[1]), (made[1], made[2])):
        assert await speak(tmp_path, old, new) == await speak(tmp_path, new, old) == b"hello"
        assert await speak(tmp_path, new, new) == b"hello"
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):  # what leaked is shut out by the second
        assert await speak(tmp_path, made[2], made[0]) == b"hello"
    with pytest.raises(ssl.SSLError):
        await speak(tmp_path, certificates.make("c", ["c-scheduler"], {}), made[0])
