"""Resources and pods as the plans see them, and a world in which plans are applied.

`World` is not a mock of anything: it is the plan's own model carried out on dictionaries, so that a property ("never
deletes a pod that was not marked") can be checked over thousands of histories a real cluster would need days for.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field, replace
from typing import Any

from daskfleet_operator import names
from daskfleet_operator.kube.objects import Budget, Deployment, Pod, Service
from daskfleet_operator.plan import groups, model, scheduler, waves
from daskfleet_operator.plan.backoff import Backoff
from daskfleet_operator.plan.conditions import timestamp
from daskfleet_operator.plan.model import Key, Memory, Observed
from daskfleet_operator.plan.replicas import GroupState, sort_pods

Json = dict[str, Any]
KEY = Key("lab", "c")
NOW = 1_000_000.0


def cluster(replicas: int = 2, **spec: Any) -> Json:
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskCluster",
        "metadata": {"name": KEY.name, "namespace": KEY.namespace, "uid": "cluster-uid", "generation": 1},
        "spec": {
            "worker": {"replicas": replicas, "spec": {"containers": [{"name": "worker", "image": "i"}]}},
            "scheduler": {
                "spec": {"containers": [{"name": "scheduler", "image": "i"}]},
                "service": {"ports": [{"name": "tcp-comm", "port": 8786}]},
            },
            **spec,
        },
    }


def group(replicas: int = 2, name: str = "c-default", image: str = "i") -> Json:
    made = groups.default_group(KEY, cluster(replicas))
    made["metadata"] |= {"name": name, "uid": f"{name}-uid", "generation": 1}
    made = copy.deepcopy(made)
    made["spec"]["worker"]["spec"]["containers"][0]["image"] = image
    if name != "c-default":
        made["metadata"]["annotations"] = {}
    return made


_numbers = itertools.count()


def pod(name: str | None = None, **facts: Any) -> Pod:
    name = name or f"c-default-worker-{next(_numbers):05d}"
    plain = Pod(
        name=name,
        uid=f"{name}-uid",
        version=1,
        cluster=KEY.name,
        component=names.WORKER,
        group="c-default",
        created=NOW - 100,
        deleting=False,
        phase="Running",
        ready=True,
        ready_since=NOW - 90,
        template=groups.worker_hash(group()),
        retire_since=None,
        wave=1,
        owner="c-default-uid",
        ip="10.0.0.1",
        http_port=8787,
        trouble=None,
        trouble_until=None,
        held_up_since=None,
    )
    return replace(plain, **facts)


def scheduler_pod(**facts: Any) -> Pod:
    return pod("c-scheduler-x", component=names.SCHEDULER, group="", owner="rs-uid", template="", **facts)


def made_objects(c: Json) -> dict[str, Any]:
    """Deployment, Service and PodDisruptionBudget as they are once made for this cluster."""
    name = names.scheduler_name(KEY.name)
    uid = c["metadata"]["uid"]
    wanted = scheduler.service_spec(c, True)
    return {
        "deployment": Deployment(name, 1, uid, scheduler.scheduler_hash(c), None),
        "service": Service(name, 1, uid, scheduler.service_hash(c, wanted), "10.1.0.1", 8787, False, True),
        "budget": Budget(name, 1, uid, ""),
    }


def observed(c: Json | None = None, pods: tuple[Pod, ...] = (), **facts: Any) -> Observed:
    """A cluster at rest but for what is given: all objects made, the scheduler answering."""
    c = cluster() if c is None else c
    defaults: dict[str, Any] = {
        "groups": (group(c["spec"]["worker"]["replicas"]),),
        "memory": Memory(token_ensured=NOW - 50, scheduler_answers="c-scheduler-x-uid"),
        **made_objects(c),
    }
    plain = Observed(key=KEY, cluster=c, pods=(scheduler_pod(), *pods), **{**defaults, **facts})
    return plain


@dataclass
class World:
    """One worker group whose plans are carried out."""

    replicas: int = 2
    image: str = "i"
    pods: dict[str, Pod] = field(default_factory=dict)
    backoff: Backoff = field(default_factory=Backoff)
    refusal: model.Refusal | None = None
    refusing: bool = False
    retiring: frozenset[str] = frozenset()
    now: float = NOW
    generation: int = 1
    created: int = 0
    deleted_unmarked: list[Pod] = field(default_factory=list)
    retired: Json | None = None

    def group(self) -> Json:
        made = group(self.replicas, image=self.image)
        made["metadata"]["generation"] = self.generation
        made["status"] = {} if self.retired is None else {"retired": self.retired}
        return made

    def template(self) -> Json:
        """What its pods are made from, as far as it matters here."""
        return {"metadata": {"annotations": {names.WAVE: str(waves.next_wave(self.group()))}}}

    def state(self) -> GroupState:
        made = self.group()
        return GroupState(
            name="c-default",
            uid=made["metadata"]["uid"],
            retired=waves.retired(made),
            generation=self.generation,
            replicas=self.replicas,
            template=groups.worker_hash(made),
            pods=sort_pods([waves.told(pod, made) for pod in self.pods.values()], made),
            backoff=self.backoff,
            refusal=self.refusal,
            retiring=self.retiring,
            scheduler_ever_ready=True,
        )

    def apply(self, action: model.Action) -> None:
        """Carry out one action as the reconciler would against a server."""
        match action:
            case model.CreateWorkers():
                if self.refusing:
                    count = self.refusal.count + 1 if self.refusal else 1
                    self.refusal = model.Refusal("Forbidden", "exceeded quota", self.now, count, self.generation)
                    return
                self.refusal = None
                for _ in range(action.count):
                    wave = int(action.pod["metadata"]["annotations"][names.WAVE])
                    new = pod(created=self.now, ready=False, phase="Pending", template=self.state().template, wave=wave)
                    self.pods[new.name] = new
                    self.created += 1
            case model.MarkVictims():
                for victim in action.candidates[: action.count]:
                    self._change(victim, retire_since=self.now)
            case model.RetireAll():
                self.retired = {"wave": action.wave, "since": timestamp(self.now)}
            case model.Retire():
                for victim in action.pods:
                    self._change(victim, deleting=True)
            case model.DeletePod():
                known = self.pods[action.pod.name]
                if action.pod.retire_since is None and not known.finished:
                    self.deleted_unmarked.append(known)
                self._change(action.pod, deleting=True)
            case model.SetBackoff():
                self.backoff = action.backoff
            case _:
                raise AssertionError(action)

    def _change(self, known: Pod, **facts: Any) -> None:
        self.pods[known.name] = replace(self.pods[known.name], **facts)

    def active(self) -> list[Pod]:
        return list(self.state().pods.active)
