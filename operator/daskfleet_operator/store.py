"""The caches: every object of every cluster as last seen, filed under the cluster it belongs to.

Three writers: our watches, kopf's watches (custom resources), and the answers to our own writes. The last makes a pass
read what the pass before wrote, so nothing is created twice while a watch lags; resourceVersions keep an older event
from undoing a newer answer, and the uids of what was deleted keep a late answer from raising it from the dead.

A material change wakes the cluster's reconcile; an echo of our own status write does not.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from daskfleet_operator import names
from daskfleet_operator.kube.kinds import (
    AUTOSCALER,
    BUDGET,
    CLUSTER,
    CUSTOM_KINDS,
    DEPLOYMENT,
    JOB,
    POD,
    SERVICE,
    WORKERGROUP,
    Json,
    Kind,
)
from daskfleet_operator.kube.objects import Budget, Deployment, Pod, Service, version_of
from daskfleet_operator.plan import waves
from daskfleet_operator.plan.model import Key, Memory, Observed, Refusal

BURIED = 6_000  # uids remembered: more than can be deleted while one request is under way, at 80 bytes each

T = TypeVar("T")
Parsed = Pod | Service | Deployment | Budget
PARSERS: dict[Kind, Callable[[Json], Parsed]] = {
    POD: Pod.parse,
    SERVICE: Service.parse,
    DEPLOYMENT: Deployment.parse,
    BUDGET: Budget.parse,
}


@dataclass(slots=True)
class Entry:
    """One cluster: its objects by kind and name."""

    objects: dict[Kind, dict[str, Json | Parsed]] = field(default_factory=lambda: defaultdict(dict))
    memory: Memory = field(default_factory=Memory)


class Store:
    """All clusters.

    Parameters
    ----------
    wake
        Called with the key of a cluster that changed materially.
    """

    def __init__(self, wake: Callable[[Key], None], cluster_domain: str) -> None:
        self._wake = wake
        self._domain = cluster_domain
        self._entries: dict[Key, Entry] = {}
        self._buried: set[int] = set()  # hashes, which take a third of what the uids would
        self._burials: deque[int] = deque()

    def clusters(self) -> list[Key]:
        return list(self._entries)

    # --- writing ---------------------------------------------------------------------------------------------------

    def changed(self, kind: Kind, object: Json) -> None:
        """An object was made or changed, by whomever."""
        meta = object["metadata"]
        key = key_of(kind, object)
        if key is None or hash(meta["uid"]) in self._buried:
            return
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry()
        known = entry.objects[kind].get(meta["name"])
        if known is not None and version_of_any(known) >= version_of(object):
            return
        parser = PARSERS.get(kind)
        new = _slim(object) if parser is None else parser(object)
        if isinstance(new, Pod):
            new = _marked(new, entry)
        entry.objects[kind][meta["name"]] = new
        if kind is WORKERGROUP and (known is None or _record(known) != _record(new)):
            _mark_all(entry)
        if kind is CLUSTER and known is not None and uid_of(known) != meta["uid"]:
            entry.memory = Memory()  # another cluster by an old name: nothing known of that one holds for it
        if known is None or _material(known) != _material(new):
            self._wake(key)

    def deleted(self, kind: Kind, object: Json) -> None:
        """An object is gone."""
        meta = object["metadata"]
        self._bury(hash(meta["uid"]))
        key = key_of(kind, object)
        if key is not None:
            self._drop(kind, key, meta["name"], version_of(object))

    def _bury(self, uid: int) -> None:
        if uid not in self._buried:
            self._buried.add(uid)
            self._burials.append(uid)
            if len(self._burials) > BURIED:
                self._buried.remove(self._burials.popleft())

    def left(self, kind: Kind, answer: Json | None) -> None:
        """What a deletion answered: the object, leaving, or as it was when it went at once; None if it was gone."""
        if answer is None or answer.get("kind") == "Status" or (kind not in PARSERS and kind not in CUSTOM_KINDS):
            return
        if "deletionTimestamp" in answer["metadata"]:
            self.changed(kind, answer)
        else:
            self.deleted(kind, answer)

    def replaced(self, kind: Kind, namespace: str | None, objects: Sequence[Json]) -> None:
        """These are all objects of this kind: what is known beyond them is gone."""
        present = {(key_of(kind, item), item["metadata"]["name"]) for item in objects}
        for key, entry in list(self._entries.items()):
            if namespace is None or key.namespace == namespace:
                for name in list(entry.objects[kind]):
                    if (key, name) not in present:
                        self._drop(kind, key, name, None)
        for item in objects:
            self.changed(kind, item)

    def _drop(self, kind: Kind, key: Key, name: str, version: int | None) -> None:
        entry = self._entries.get(key)
        if entry is None or (known := entry.objects[kind].get(name)) is None:
            return
        if version is not None and version_of_any(known) > version:
            return  # a newer object by the same name
        del entry.objects[kind][name]
        if kind is CLUSTER:
            entry.memory = Memory()
        if not any(entry.objects.values()):
            del self._entries[key]
        else:
            self._wake(key)

    def remember(self, key: Key, change: Callable[[Memory], Memory]) -> None:
        """Change what is remembered of a cluster; nothing if the cluster is gone."""
        if (entry := self._entries.get(key)) is not None:
            entry.memory = change(entry.memory)

    def refused(self, key: Key, what: str, refusal: Refusal) -> None:
        """Remember a refusal; a repeated one, while the resource stays as it is, is counted."""

        def change(memory: Memory) -> Memory:
            before = memory.refusals.get(what)
            count = before.count + 1 if before is not None and before.generation == refusal.generation else 1
            return replace(memory, refusals={**memory.refusals, what: replace(refusal, count=count)})

        self.remember(key, change)

    def accepted(self, key: Key, what: str) -> None:
        """Forget a refusal."""

        def change(memory: Memory) -> Memory:
            kept = {name: refusal for name, refusal in memory.refusals.items() if name != what}
            return replace(memory, refusals=kept)

        self.remember(key, change)

    # --- reading ---------------------------------------------------------------------------------------------------

    def observed(self, key: Key) -> Observed:
        """One cluster as it is known now."""
        entry = self._entries.get(key) or Entry()
        objects = entry.objects
        groups = tuple(map(_sure, objects[WORKERGROUP].values()))
        pods = (_told(pod, entry.memory) for pod in _pods(entry))
        scheduler = names.scheduler_name(key.name)
        return Observed(
            key=key,
            cluster=_custom(objects[CLUSTER].get(key.name)),
            groups=groups,
            autoscalers=tuple(map(_sure, objects[AUTOSCALER].values())),
            job=_custom(objects[JOB].get(key.name)),
            pods=tuple(pods),
            deployment=_typed(objects[DEPLOYMENT].get(scheduler), Deployment),
            deployments={name: it for name, it in objects[DEPLOYMENT].items() if isinstance(it, Deployment)},
            service=_typed(objects[SERVICE].get(scheduler), Service),
            budget=_typed(objects[BUDGET].get(scheduler), Budget),
            memory=entry.memory,
            cluster_domain=self._domain,
        )

    def versions(self, kind: Kind) -> dict[tuple[str, str], int]:
        """(namespace, name) -> resourceVersion of all objects of a kind."""
        found = {}
        for key, entry in self._entries.items():
            for name, known in entry.objects[kind].items():
                found[key.namespace, name] = version_of_any(known)
        return found

    def phases(self) -> Iterator[str]:
        """The phase of each cluster."""
        for key, entry in self._entries.items():
            cluster = _custom(entry.objects[CLUSTER].get(key.name))
            if cluster is not None:
                yield (cluster.get("status") or {}).get("phase", "Unknown")

    def pods_of(self, key: Key) -> int:
        """How many pods a cluster has."""
        entry = self._entries.get(key)
        return 0 if entry is None else len(entry.objects[POD])

    def pods(self) -> Iterator[Pod]:
        for entry in self._entries.values():
            yield from _pods(entry)


def key_of(kind: Kind, object: Json) -> Key | None:
    """The cluster an object belongs to."""
    meta = object["metadata"]
    if kind in (CLUSTER, JOB):
        name = meta["name"]
    elif kind in (WORKERGROUP, AUTOSCALER):
        name = object["spec"].get("cluster")
    else:
        name = (meta.get("labels") or {}).get(names.CLUSTER_LABEL)
    return Key(meta["namespace"], name) if name else None


def version_of_any(known: Json | Parsed) -> int:
    return version_of(known) if isinstance(known, dict) else known.version


def uid_of(known: Json | Parsed) -> str:
    return str(known["metadata"]["uid"]) if isinstance(known, dict) else ""


def _slim(object: Json) -> Json:
    """Without what nobody reads and kubectl or the API server adds in bulk."""
    meta = {key: value for key, value in object["metadata"].items() if key != "managedFields"}
    if "annotations" in meta:
        dropped = "kubectl.kubernetes.io/last-applied-configuration"
        meta["annotations"] = {key: value for key, value in meta["annotations"].items() if key != dropped}
    return {**object, "metadata": meta}


def _material(known: Json | Parsed) -> object:
    """What a plan depends on: not the status we write, not the version."""
    if not isinstance(known, dict):
        return known
    meta = {key: value for key, value in known["metadata"].items() if key != "resourceVersion"}
    return {**known, "metadata": meta, "status": None}


def _pods(entry: Entry) -> Iterator[Pod]:
    return (pod for pod in entry.objects[POD].values() if isinstance(pod, Pod))


def _record(group: Json | Parsed) -> object:
    return (_sure(group).get("status") or {}).get("retired")


def _marked(pod: Pod, entry: Entry) -> Pod:
    """The pod as its group's record has it. Here, once for each event: passes, which see all pods, are more."""
    for group in entry.objects[WORKERGROUP].values():
        pod = waves.told(pod, _sure(group))
    return pod


def _mark_all(entry: Entry) -> None:
    for pod in list(_pods(entry)):
        entry.objects[POD][pod.name] = _marked(pod, entry)


def _told(pod: Pod, memory: Memory) -> Pod:
    """The pod with the trouble that its events tell of, as long as it is held up."""
    known = memory.held_up.get(pod.uid) if pod.held_up_since is not None else None
    return pod if known is None or known.trouble is None else replace(pod, trouble=known.trouble)


def _custom(known: Json | Parsed | None) -> Json | None:
    return known if isinstance(known, dict) else None


def _sure(known: Json | Parsed) -> Json:
    assert isinstance(known, dict)
    return known


def _typed(known: Json | Parsed | None, kind: type[T]) -> T | None:
    return known if isinstance(known, kind) else None
