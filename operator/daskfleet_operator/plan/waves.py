"""All workers of a group are marked at once, by one record in the group's status.

A mark on each pod is one request more for each (`plan.replicas`), and when a group goes to none there is nothing to
choose. So the group's status says instead that all its workers up to a wave are to retire, and since when. Each pod
carries the number of its wave, one more than the last that was retired: what is made after the record is not covered
by it. The record is written before anything else happens and never taken back, as a mark is.
"""

from __future__ import annotations

from dataclasses import replace

from daskfleet_operator.kube.kinds import Json
from daskfleet_operator.kube.objects import Pod, parse_time


def retired(group: Json) -> int:
    """The last wave that is to go; 0 if none is."""
    return int((group.get("status") or {}).get("retired", {}).get("wave", 0))


def next_wave(group: Json) -> int:
    """The wave of the pods that are made now."""
    return retired(group) + 1


def told(pod: Pod, group: Json) -> Pod:
    """The pod; if the group's record covers it, as if it carried a mark itself."""
    record = (group.get("status") or {}).get("retired")
    if record is None or pod.owner != group["metadata"]["uid"]:
        return pod
    if pod.retire_since is not None or pod.wave > record["wave"]:
        return pod
    return replace(pod, retire_since=parse_time(record["since"]))
