"""Questions that no watch answers: to schedulers, and to the events of pods that do not get started.

Each answer is remembered with the cluster, where the next plan finds it; who does not answer is asked again later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

from daskfleet_operator import names
from daskfleet_operator.kube.client import Api, ApiError
from daskfleet_operator.kube.kinds import EVENT
from daskfleet_operator.kube.objects import Pod, held_up_by
from daskfleet_operator.plan import model, status
from daskfleet_operator.plan.autoscale import DELAY, remembered
from daskfleet_operator.plan.idle import silent_since
from daskfleet_operator.plan.model import Memory
from daskfleet_operator.plan.templates import sets
from daskfleet_operator.scheduler_api import SchedulerError
from daskfleet_operator.schedulers import Schedulers
from daskfleet_operator.store import Store

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 2.0  # seconds between two questions to a scheduler that does not answer


class Asking:
    """Asks on behalf of the passes.

    Parameters
    ----------
    beside
        Runs a coroutine under a name while passes go on.
    wake
        The work queue's.
    now
        Seconds since the epoch.
    """

    def __init__(
        self,
        api: Api,
        store: Store,
        schedulers: Schedulers,
        *,
        beside: Callable[[str, Coroutine[Any, Any, None]], None],
        wake: Callable[[model.Key], None],
        now: Callable[[], float],
    ) -> None:
        self._api = api
        self._store = store
        self._schedulers = schedulers
        self._beside = beside
        self._wake = wake
        self._now = now

    async def target(self, key: model.Key, action: model.AskTarget) -> bool:
        """How many workers the scheduler wants, for an autoscaler."""
        scheduler = self._schedulers.of(self._store.observed(key))
        if scheduler is None:
            return False
        try:
            workers = await scheduler.adaptive_target(action.duration)
        except SchedulerError as error:
            logger.debug("%s: no adaptive target: %s", key, error)
            said = {action.autoscaler: str(error)}
            self._store.remember(key, lambda memory: replace(memory, silent={**memory.silent, **said}))
            return False
        new = model.Target(workers, self._now())
        observed = self._store.observed(key)
        delay = next(
            (
                float(item["spec"].get("scaleDownDelaySeconds", DELAY))
                for item in observed.autoscalers
                if item["metadata"]["name"] == action.autoscaler
            ),
            float(DELAY),
        )

        def change(memory: Memory) -> Memory:
            kept = remembered(memory.targets.get(action.autoscaler, ()), new, delay)
            silent = {name: said for name, said in memory.silent.items() if name != action.autoscaler}
            return replace(memory, targets={**memory.targets, action.autoscaler: kept}, silent=silent)

        self._store.remember(key, change)
        return True

    async def idle(self, key: model.Key, action: model.AskIdle) -> bool:
        """Since when the scheduler has had nothing to do."""
        observed = self._store.observed(key)
        scheduler = self._schedulers.of(observed)
        if scheduler is None or not status.scheduler_ready(observed):
            self._store.remember(key, self._silent)
            return True
        try:
            since = await scheduler.idle_since()
        except SchedulerError as error:
            logger.debug("%s: idleness unknown: %s", key, error)
            return False
        now = self._now()
        self._store.remember(key, lambda memory: replace(memory, idle_since=since, idle_asked=now, silent_since=None))
        return True

    def _silent(self, memory: Memory) -> Memory:
        now = self._now()
        return replace(memory, idle_since=None, idle_asked=now, silent_since=silent_since(memory, now))

    async def await_scheduler(self, key: model.Key, action: model.AwaitScheduler) -> bool:
        """Find out beside the passes."""
        self._beside(f"await {action.pod.uid}", self._await_scheduler(key, action.pod))
        return False

    async def _await_scheduler(self, key: model.Key, pod: Pod) -> None:
        """No watch tells: the kubelet's probes are a second apart."""

        async def healthy() -> bool | None:
            return await self._schedulers.of_pod(key, pod).healthy() or None

        if await self._until_it_answers(key, pod, healthy, 0.05):
            self._store.remember(key, lambda memory: replace(memory, scheduler_answers=pod.uid))
            self._wake(key)

    def token(self, key: model.Key) -> None:
        """Find out beside the passes whether a scheduler that runs takes the token.

        One that is given another by its users does not, and need not.
        """
        observed = self._store.observed(key)
        pod = status.scheduler_pod(observed)
        if pod is None or not pod.ip or pod.phase != "Running" or observed.cluster is None:
            return
        if not sets(observed.cluster["spec"]["scheduler"]["spec"], names.TOKEN_ENV):
            self._beside(f"token {pod.uid}", self._token(key, pod))

    async def _token(self, key: model.Key, pod: Pod) -> None:
        async def takes() -> bool | None:
            return await self._schedulers.of_pod(key, pod).takes_token()

        taken = await self._until_it_answers(key, pod, takes, LONGEST_PAUSE)
        refused_by = pod.uid if taken is False else None
        if taken is not None and self._store.observed(key).memory.token_refused_by != refused_by:
            self._store.remember(key, lambda memory: replace(memory, token_refused_by=refused_by))
            self._wake(key)

    async def _until_it_answers(
        self, key: model.Key, pod: Pod, ask: Callable[[], Awaitable[bool | None]], pause: float
    ) -> bool | None:
        """What the pod answers in the end, asked with growing pauses; None if it is gone before."""
        while (answer := await ask()) is None:
            if all(other.uid != pod.uid or other.deleting for other in self._store.observed(key).pods):
                return None
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 1.2)
        return answer

    async def events(self, key: model.Key, action: model.AskEvents) -> bool:
        """What keeps a pod from being started; an operator that may not read events does without."""
        pod = action.pod
        params = {"fieldSelector": f"involvedObject.uid={pod.uid},type=Warning"}
        trouble = None
        try:
            answer = await self._api.request("GET", EVENT.path(key.namespace), params=params, kind=EVENT.plural)
            trouble = held_up_by(pod.name, answer["items"] or ())
        except ApiError as error:
            logger.warning("%s: the events of the pod %s could not be read: %s", key, pod.name, error)
        there = {other.uid for other in self._store.observed(key).pods}

        def change(memory: Memory) -> Memory:
            kept = {uid: known for uid, known in memory.held_up.items() if uid in there}
            return replace(memory, held_up={**kept, pod.uid: model.HeldUp(self._now(), trouble)})

        self._store.remember(key, change)
        return True
