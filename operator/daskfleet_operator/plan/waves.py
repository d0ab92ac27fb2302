"""All workers of a group are marked at once, by one record in the group's status.

A mark on each pod is one request more for each (`plan.replicas`), and when a group goes to none there is nothing to
choose. So the group's status says instead that all its workers up to a wave are to retire, and since when. Each pod
carries the number of its wave, one more than the last that was retired: what is made after the record is not covered
by it. The record is written before anything else happens and never taken back, as a mark is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from daskfleet_operator.kube.kinds import Json
from daskfleet_operator.kube.objects import Pod, parse_time


def retired(group: Json) -> int:
    """The last wave that is to go; 0 if none is."""
    return int((group.get("status") or {}).get("retired", {}).get("wave", 0))


def next_wave(group: Json) -> int:
    """The wave of the pods that are made now."""
    return retired(group) + 1


def marked(pods: Iterable[Pod], groups: Sequence[Json]) -> tuple[Pod, ...]:
    """The pods, those that a group's record covers as if they carried a mark each."""
    records = {group["metadata"]["uid"]: (group.get("status") or {}).get("retired") for group in groups}

    def told(pod: Pod) -> Pod:
        record = records.get(pod.owner or "")
        if record is None or pod.retire_since is not None or pod.wave > record["wave"]:
            return pod
        return replace(pod, retire_since=parse_time(record["since"]))

    return tuple(map(told, pods))
