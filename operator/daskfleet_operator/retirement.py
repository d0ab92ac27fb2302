"""Taking workers away: the intent is written first, then the scheduler empties them, then their pods are deleted.

`plan.replicas` says why, and which. A retirement moves data and may take a minute: it runs beside the passes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from daskfleet_operator import names
from daskfleet_operator.adoption import Adoption
from daskfleet_operator.kube.client import STRATEGIC, Api, ApiError
from daskfleet_operator.kube.kinds import POD, WORKERGROUP
from daskfleet_operator.kube.objects import Pod
from daskfleet_operator.plan import model
from daskfleet_operator.plan.conditions import timestamp
from daskfleet_operator.pods import PodWriter
from daskfleet_operator.scheduler_api import SchedulerError
from daskfleet_operator.schedulers import Schedulers
from daskfleet_operator.store import Store

logger = logging.getLogger(__name__)


class Retirement:
    """Marks, retires and deletes worker pods.

    Parameters
    ----------
    beside
        Runs a coroutine under a name while passes go on.
    wake_in
        The work queue's.
    now
        Seconds since the epoch.
    """

    def __init__(
        self,
        api: Api,
        store: Store,
        schedulers: Schedulers,
        pods: PodWriter,
        adoption: Adoption,
        *,
        beside: Callable[[str, Coroutine[Any, Any, None]], None],
        wake_in: Callable[[model.Key, float], None],
        now: Callable[[], float],
    ) -> None:
        self._api = api
        self._store = store
        self._schedulers = schedulers
        self._pods = pods
        self._adoption = adoption
        self._beside = beside
        self._wake_in = wake_in
        self._now = now

    async def mark(self, key: model.Key, action: model.MarkVictims) -> bool:
        """Choose, and write the intent on each."""
        victims = await self._choose(key, action)
        mark = self._adoption.mark if action.adopted else self._mark_one
        results = await asyncio.gather(*(mark(key, pod) for pod in victims))
        return any(results)

    async def mark_all(self, key: model.Key, action: model.RetireAll) -> bool:
        """Write the intent on the group, for all its pods."""
        record = {"wave": action.wave, "since": timestamp(self._now())}
        body = {"metadata": {"uid": action.uid}, "status": {"retired": record}}
        try:
            answer = await self._api.patch(WORKERGROUP, key.namespace, action.group, body, subresource="status")
        except ApiError as error:
            if error.gone:
                return False
            raise
        self._store.changed(WORKERGROUP, answer)
        if (answer.get("status") or {}).get("retired") != record:  # definitions of an earlier version drop it
            await asyncio.gather(*(self._mark_one(key, pod) for pod in action.pods))
        return True

    async def _choose(self, key: model.Key, action: model.MarkVictims) -> list[Pod]:
        """Whom the scheduler would rather lose; where it cannot say, the first of the candidates."""
        candidates = list(action.candidates)
        if action.count >= len(candidates):
            return candidates
        scheduler = self._schedulers.of(self._store.observed(key))
        named: list[Pod] = []
        if scheduler is not None:
            try:
                named = await scheduler.workers_to_close(action.count, candidates)
            except SchedulerError as error:
                logger.debug("%s: the scheduler names no workers to close: %s", key, error)
        chosen = {pod.uid for pod in named}
        rest = [pod for pod in candidates if pod.uid not in chosen]
        return (named + rest)[: action.count]

    async def _mark_one(self, key: model.Key, pod: Pod) -> bool:
        """Write the mark as a condition. The kubelet takes up any change of metadata at once, and after that it waits
        for its next look at the containers, up to a second, before it ends the pod; conditions leave it alone."""
        since = timestamp(self._now())
        condition = {"type": names.RETIRING, "status": "True", "lastTransitionTime": since, "reason": "ScaledDown"}
        body = {"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}}
        return await self._pods.patch(key.namespace, pod.name, body, content_type=STRATEGIC, subresource="status")

    async def retire(self, key: model.Key, action: model.Retire) -> bool:
        """Begin a retirement."""
        uids = {pod.uid for pod in action.pods}
        self._store.remember(key, lambda memory: replace(memory, retiring=memory.retiring | uids))
        self._beside(f"retire {sorted(uids)}", self._retire_and_delete(key, action))
        return True

    async def _retire_and_delete(self, key: model.Key, action: model.Retire) -> None:
        uids = {pod.uid for pod in action.pods}
        again = 0.0
        try:
            observed = self._store.observed(key)
            scheduler = self._schedulers.of(observed)
            if scheduler is None:
                raise SchedulerError("the scheduler's Service has no address")
            heirs = [pod for pod in observed.pods if pod.component == names.WORKER and pod.staying]
            await scheduler.retire(action.pods, heirs, seconds=max(1.0, action.deadline - self._now()))
            if action.adopted:
                there = {pod.uid for pod in self._store.observed(key).pods}
                self._store.remember(key, lambda memory: replace(memory, retired=(memory.retired | uids) & there))
            else:
                await asyncio.gather(*(self.delete_pod(key, model.DeletePod(pod, "retired")) for pod in action.pods))
        except (SchedulerError, ApiError) as error:
            logger.info("%s: retirement of %d workers is tried again: %s", key, len(uids), error)
            again = 1.0
            if action.adopted:  # the release's token may be another by now
                self._store.remember(key, lambda memory: replace(memory, token_ensured=None))
        finally:
            self._store.remember(key, lambda memory: replace(memory, retiring=memory.retiring - uids))
            self._wake_in(key, again)

    async def delete_pod(self, key: model.Key, action: model.DeletePod) -> bool:
        """Delete this very pod."""
        async with self._pods.slots:
            answer = await self._api.delete(POD, key.namespace, action.pod.name, action.pod.uid)
        self._store.left(POD, answer)
        return answer is not None
