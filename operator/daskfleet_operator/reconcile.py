"""One pass over one cluster: read the caches, plan, apply, look again; then write each status once, and tell the news.

Answers to our writes go into the caches at once, so looking again shows them; a pass ends when the plan has nothing
left to do, typically after two rounds (make the scheduler and the group; make the group's pods). What takes long, as a
retirement that moves data, runs beside the passes as a task, whose end wakes the cluster.

Refusals of the API server are facts to be reported, not exceptions: they are remembered, shown in conditions and tried
again later by the plan. What is transient (a lost connection, a 5xx) is raised, and the queue repeats the pass.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from daskfleet_operator.adoption import Adoption
from daskfleet_operator.asking import Asking
from daskfleet_operator.certificates import Certificates
from daskfleet_operator.events import Events
from daskfleet_operator.kube.client import JSON_PATCH, MERGE, Api, ApiError
from daskfleet_operator.kube.kinds import AUTOSCALER, JOB, POD, WORKERGROUP, Json, Kind
from daskfleet_operator.kube.objects import SOON, controller, of_a_predecessor
from daskfleet_operator.metrics import Metrics
from daskfleet_operator.plan import groups, model
from daskfleet_operator.plan.plan import plan, statuses
from daskfleet_operator.plan.status import only_counts
from daskfleet_operator.pods import PodWriter
from daskfleet_operator.retirement import Retirement
from daskfleet_operator.schedulers import Schedulers
from daskfleet_operator.store import Store
from daskfleet_operator.tokens import Tokens

logger = logging.getLogger(__name__)

ROUNDS = 6
# Seconds between writes of counts, two for a thousand pods: one costs the API server as much as two pods made.
COUNTS_EVERY, COUNTS_PER_POD = 1.0, 2e-3
Memory = model.Memory


class Reconciler:
    """Work on clusters; `pass_over` is what the work queue calls.

    Parameters
    ----------
    wake, wake_in
        The work queue's.
    now
        Seconds since the epoch.
    """

    def __init__(
        self,
        api: Api,
        store: Store,
        schedulers: Schedulers,
        metrics: Metrics,
        *,
        wake: Callable[[model.Key], None],
        wake_in: Callable[[model.Key, float], None],
        now: Callable[[], float],
    ) -> None:
        self._api = api
        self._store = store
        self._schedulers = schedulers
        self._metrics = metrics
        self._events = Events(api, now)
        self._wake = wake
        self._wake_in = wake_in
        self._now = now
        self._pods = PodWriter(api, store)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._certificates = certificates = Certificates(api, store, wake_in, now)
        self._adoption = Adoption(api, store, schedulers, self._pods, now)
        retirement = Retirement(
            api, store, schedulers, self._pods, self._adoption, beside=self._beside, wake_in=wake_in, now=now
        )
        asking = Asking(api, store, schedulers, beside=self._beside, wake=wake, now=now)
        tokens = Tokens(
            api,
            store,
            schedulers,
            refused=lambda key, what, error, body: self._refused(key, what, error, self._generation(key, body)),
            ask=asking.token,
            wake_in=wake_in,
            now=now,
        )
        self._appliers: Mapping[type, Callable[[model.Key, Any], Coroutine[Any, Any, bool]]] = {
            model.Create: self._create,
            model.Replace: self._replace,
            model.TryTemplate: self._try_template,
            model.EnsureToken: tokens.ensure,
            model.CreateWorkers: self._create_workers,
            model.Patch: self._patch,
            model.Resize: self._resize,
            model.MarkVictims: retirement.mark,
            model.RetireAll: retirement.mark_all,
            model.Retire: retirement.retire,
            model.DeletePod: retirement.delete_pod,
            model.Delete: self._delete,
            model.AskTarget: asking.target,
            model.AskIdle: asking.idle,
            model.AwaitScheduler: asking.await_scheduler,
            model.AskEvents: asking.events,
            model.Forget: self._forget,
            model.SetBackoff: self._set_backoff,
            model.EnsureTls: certificates.ensure,
            model.Adopt: self._adoption.adopt,
            model.Release: self._adoption.release,
            model.FindPods: self._adoption.find_pods,
            model.ReadToken: self._adoption.read_token,
        }

    async def close(self) -> None:
        """Cancel what runs beside the passes."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def pass_over(self, key: model.Key) -> float | None:
        """Bring one cluster nearer to what is desired; returns the seconds after which to look again."""
        for _ in range(ROUNDS):
            step = plan(self._store.observed(key), self._now())
            wakes = [step.wake_at]
            if not await self._apply(key, step.actions):
                if step.actions:  # refused, perhaps: when to try again is known only now
                    wakes.append(plan(self._store.observed(key), self._now()).wake_at)
                break
        else:
            self._wake(key)
        observed = self._store.observed(key)
        if observed.cluster is None:
            self._schedulers.forget(key)
            self._certificates.forget(key)
        put_off = [await self._write_status(key, observed, write) for write in statuses(observed, self._now())]
        wake_at = min((at for at in (*wakes, *put_off) if at is not None), default=None)
        return None if wake_at is None else max(0.01, wake_at - self._now())

    async def _apply(self, key: model.Key, actions: tuple[model.Action, ...]) -> bool:
        """Apply all; True if one changed something. The first transient failure is raised after all have ended."""
        for action in actions:
            self._metrics.actions.add(action=type(action).__name__)
        results = await asyncio.gather(
            *(self._appliers[type(action)](key, action) for action in actions), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return any(results)

    async def _write_status(self, key: model.Key, observed: model.Observed, write: model.StatusWrite) -> float | None:
        """Write what is new; counts of workers once a second, not for every pod. Returns when that is due."""
        resource = self._resource(observed, write.kind, write.name)
        if resource is None or (old := resource.get("status") or {}) == write.status:
            return None
        what, now = f"{write.kind.name}/{write.name}", self._now()
        due = observed.memory.told.get(what, 0.0) + max(COUNTS_EVERY, COUNTS_PER_POD * len(observed.pods))
        if now < due and only_counts(old, write.status):
            return due
        try:
            answer = await self._api.patch(
                write.kind, key.namespace, write.name, {"status": write.status}, subresource="status"
            )
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        self._store.changed(write.kind, answer)
        self._store.remember(key, lambda memory: replace(memory, told={**memory.told, what: now}))
        if write.kind is JOB:
            self._wake(key)  # a job's plan goes by its status: failures are counted there
        for event in write.events:
            await self._events.post(write.kind, resource, event)
        return None

    @staticmethod
    def _resource(observed: model.Observed, kind: Kind, name: str) -> Json | None:
        candidates = (observed.cluster, observed.job, *observed.groups, *observed.autoscalers)
        for resource in candidates:
            if resource is not None and resource["kind"] == kind.name and resource["metadata"]["name"] == name:
                return resource
        return None

    # --- making and changing objects -------------------------------------------------------------------------------

    async def _create(self, key: model.Key, action: model.Create) -> bool:
        memory_key = f"{action.kind.name}/{action.name}"
        try:
            answer = await self._api.create(action.kind, key.namespace, action.body)
        except ApiError as error:
            if error.reason == "AlreadyExists":
                return await self._exists(key, action)
            return self._refused(key, memory_key, error, self._generation(key, action.body))
        self._store.changed(action.kind, answer)
        self._store.accepted(key, memory_key)
        return True

    async def _exists(self, key: model.Key, action: model.Create) -> bool:
        """Something by that name is there: ours, not yet seen by a watch, or somebody else's."""
        found = await self._api.find(action.kind, key.namespace, action.name)
        if found is None or of_a_predecessor(found, action.body):
            self._wake_in(key, SOON)
            return False
        ours = controller(action.body)
        if ours is None or ours == controller(found) or "deletionTimestamp" in found["metadata"]:
            self._store.changed(action.kind, found)
            return False
        message = f"a {action.kind.name} named {action.name!r} exists and does not belong to this resource"
        error = ApiError(409, "AlreadyExists", message)
        return self._refused(key, f"{action.kind.name}/{action.name}", error, self._generation(key, action.body))

    async def _replace(self, key: model.Key, action: model.Replace) -> bool:
        memory_key = f"{action.kind.name}/{action.name}"
        try:
            answer = await self._api.replace(action.kind, key.namespace, action.name, action.body)
        except ApiError as error:
            if error.status == 404:
                return False
            return self._refused(key, memory_key, error, self._generation(key, action.body))
        self._store.changed(action.kind, answer)
        self._store.accepted(key, memory_key)
        return True

    async def _patch(self, key: model.Key, action: model.Patch) -> bool:
        content_type = JSON_PATCH if isinstance(action.body, list) else MERGE
        try:
            answer = await self._api.patch(
                action.kind, key.namespace, action.name, action.body, content_type=content_type
            )
        except ApiError as error:
            if error.status == 404:
                return False
            if action.generation is None:
                raise
            return self._refused(key, f"{action.kind.name}/{action.name}", error, action.generation)
        self._store.changed(action.kind, answer)
        if action.generation is not None:
            self._store.accepted(key, f"{action.kind.name}/{action.name}")
        return True

    async def _try_template(self, key: model.Key, action: model.TryTemplate) -> bool:
        try:
            await self._api.create(POD, key.namespace, action.pod, dry_run=True)
        except ApiError as error:
            undecided = "exceeded quota" in error.message or "does not support dry run" in error.message
            if not undecided:
                return self._refused(key, action.what, error, action.generation)
        self._store.accepted(key, action.what)
        self._store.remember(
            key, lambda memory: replace(memory, approved={**memory.approved, action.what: action.fingerprint})
        )
        return True

    async def _resize(self, key: model.Key, action: model.Resize) -> bool:
        """Whoever sets a size by hand ends the autoscaler first, and the caches may not have heard of either."""
        path = "/spec/worker/replicas"
        body = [
            {"op": "test", "path": path, "value": action.before},
            {"op": "replace", "path": path, "value": action.after},
        ]
        try:
            await self._api.get(AUTOSCALER, key.namespace, action.autoscaler)
            answer = await self._api.patch(WORKERGROUP, key.namespace, action.group, body, content_type=JSON_PATCH)
        except ApiError as error:
            if error.status not in (404, 422):
                raise
            return False
        self._store.changed(WORKERGROUP, answer)
        if action.after < action.before:
            at = {action.autoscaler: self._now()}
            self._store.remember(key, lambda memory: replace(memory, scaled_down={**memory.scaled_down, **at}))
        return True

    async def _create_workers(self, key: model.Key, action: model.CreateWorkers) -> bool:
        """Create pods in parallel; the first refusal stops the rest, as they would be refused alike."""
        refused: list[ApiError] = []

        async def one() -> bool:
            name = f"{action.group}-worker-{secrets.token_hex(5)}"
            async with self._pods.slots:
                if refused:
                    return False
                try:
                    answer = await self._api.create(POD, key.namespace, groups.named(action.pod, name))
                except ApiError as error:
                    if error.transient:
                        raise
                    refused.append(error)
                    return False
            self._store.changed(POD, answer)
            return True

        results = await asyncio.gather(*(one() for _ in range(action.count)), return_exceptions=True)
        if refused:
            self._refused(key, f"Pod/{action.group}", refused[0], action.generation)
        elif any(result is True for result in results):
            self._store.accepted(key, f"Pod/{action.group}")
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return any(results)

    def _generation(self, key: model.Key, body: Json) -> int:
        """The generation of the resource that `body` is made for: an edit of it makes a refusal void."""
        owner = controller(body)
        observed = self._store.observed(key)
        for resource in (observed.cluster, observed.job, *observed.groups):
            if resource is not None and resource["metadata"]["uid"] == owner:
                return int(resource["metadata"].get("generation", 0))
        return 0

    def _refused(self, key: model.Key, what: str, error: ApiError, generation: int) -> bool:
        """Remember a refusal; what is transient is raised. Returns False: nothing was changed."""
        if error.transient or error.reason == "Conflict":
            raise error
        if error.status == 404 or "being terminated" in error.message:  # the namespace goes
            return False
        known = self._store.observed(key).memory.refusals.get(what)
        if known is None or known.message != error.message:
            logger.info("%s: the API server refused %s: %s", key, what, error.message)
        self._store.refused(key, what, model.Refusal(error.reason, error.message, self._now(), 1, generation))
        return False

    async def _forget(self, key: model.Key, action: model.Forget) -> bool:
        self._store.accepted(key, action.refusal)
        return True

    async def _set_backoff(self, key: model.Key, action: model.SetBackoff) -> bool:
        self._store.remember(
            key, lambda memory: replace(memory, backoffs={**memory.backoffs, action.group: action.backoff})
        )
        return True

    async def _delete(self, key: model.Key, action: model.Delete) -> bool:
        logger.info("%s: deleting the %s %s: %s", key, action.kind.name, action.name, action.why)
        answer = await self._api.delete(action.kind, key.namespace, action.name, action.uid)
        self._store.left(action.kind, answer)
        return answer is not None

    def _beside(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` while passes go on; nothing, if what has this name runs still."""
        if name in self._tasks:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))
