"""What a plan reads and what it says.

`Observed` is one cluster as the caches show it, custom resources as the raw JSON that users wrote; `Memory` is what the
operator remembers between two passes and can afford to lose: after a restart it is empty, and the next pass tries once
more what was backing off. Actions are values, so that a test can apply them to a dict and the reconciler to a server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from daskfleet_operator.kube.kinds import Json, Kind
from daskfleet_operator.kube.objects import Budget, Deployment, Pod, Service


@dataclass(frozen=True, slots=True)
class Key:
    """One Dask cluster: what the work queue works on."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The API server would not make an object: when last, how often in a row, and its sentence."""

    reason: str
    message: str
    last: float
    count: int
    generation: int


@dataclass(frozen=True, slots=True)
class Backoff:
    """Failures in a row, when the last was, and what it said. See `plan.backoff`."""

    failures: int = 0
    last: float = 0.0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """How many workers the scheduler wanted, and when it was asked."""

    workers: int
    at: float


@dataclass(frozen=True, slots=True)
class HeldUp:
    """When the events of a pod that does not get started were last read, and the trouble they told of."""

    asked: float
    trouble: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of one cluster; losing it costs a retry, never correctness."""

    refusals: Mapping[str, Refusal] = field(default_factory=dict)  # by "Kind/name", worker pods by "Pod/group"
    backoffs: Mapping[str, Backoff] = field(default_factory=dict)  # by group
    targets: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)  # by autoscaler, newest last
    scaled_down: Mapping[str, float] = field(default_factory=dict)  # by autoscaler
    silent: Mapping[str, str] = field(default_factory=dict)  # by autoscaler, why the scheduler told no target
    idle_since: float | None = None
    idle_asked: float | None = None
    silent_since: float | None = None  # when asked about idleness, a scheduler that is not ready says nothing
    retiring: frozenset[str] = frozenset()  # uids of pods that a task is retiring now
    retired: frozenset[str] = frozenset()  # uids of adopted pods that have been emptied
    looked: Mapping[str, float] = field(default_factory=dict)  # by adopted Deployment, when its pods were listed
    scheduler_answers: str | None = None  # uid of the scheduler pod whose /health was seen to answer
    token_ensured: float | None = None
    token_refused_by: str | None = None  # uid of the scheduler pod that began with another token than the Secret's
    tls_ensured: tuple[str, float] | None = None  # name of the Secret, and when
    told: Mapping[str, float] = field(default_factory=dict)  # when each status was written, by "Kind/name"
    approved: Mapping[str, str] = field(default_factory=dict)  # fingerprints of templates, see `plan.trial`
    held_up: Mapping[str, HeldUp] = field(default_factory=dict)  # by a pod's uid


@dataclass(frozen=True, slots=True)
class Observed:
    """One cluster as the caches show it."""

    key: Key
    cluster: Json | None
    groups: tuple[Json, ...] = ()
    autoscalers: tuple[Json, ...] = ()
    job: Json | None = None
    pods: tuple[Pod, ...] = ()
    deployment: Deployment | None = None
    deployments: Mapping[str, Deployment] = field(default_factory=dict)  # by name, the scheduler's among them
    service: Service | None = None
    budget: Budget | None = None
    memory: Memory = Memory()
    cluster_domain: str = "cluster.local"


# --- actions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Replace:
    """Make an object of ours, which exists, be as given."""

    kind: Kind
    name: str
    body: Json


@dataclass(frozen=True, slots=True)
class Create:
    """Create an object; one that exists already is left as it is."""

    kind: Kind
    name: str
    body: Json


@dataclass(frozen=True, slots=True)
class TryTemplate:
    """Have the API server say what it thinks of a pod, without making it."""

    what: str
    fingerprint: str
    pod: Json
    generation: int


@dataclass(frozen=True, slots=True)
class EnsureToken:
    """Create the cluster's token Secret, unless it is there."""

    name: str
    body: Json


@dataclass(frozen=True, slots=True)
class EnsureTls:
    """Create the Secret with the cluster's certificates, unless it is there.

    `previous` is the one that it replaces. What is in one that is `used`, by a scheduler that runs, cannot be anew.
    """

    name: str
    body: Json
    previous: str
    used: bool


@dataclass(frozen=True, slots=True)
class CreateWorkers:
    """Create `count` worker pods of a group; `pod` is a template whose name the reconciler fills in."""

    group: str
    count: int
    pod: Json
    generation: int


@dataclass(frozen=True, slots=True)
class Patch:
    """Change fields of an object: a merge patch (a dict) or a JSON patch (a list).

    With the `generation` of the resource that it is done for, a refusal is remembered and not raised.
    """

    kind: Kind
    name: str
    body: Json | list[Json]
    generation: int | None = None


@dataclass(frozen=True, slots=True)
class Resize:
    """Give a group another size, for an autoscaler: only while that is there and nobody else has changed the size."""

    group: str
    autoscaler: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class MarkVictims:
    """Write the intent to retire `count` of these pods on them: the scheduler says which, else the order given."""

    group: str
    count: int
    candidates: tuple[Pod, ...]
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class RetireAll:
    """Write the intent to retire all workers of a group on the group: those up to a wave, see `plan.waves`."""

    group: str
    uid: str
    wave: int
    pods: tuple[Pod, ...]


@dataclass(frozen=True, slots=True)
class Retire:
    """Have the scheduler retire exactly these marked pods, in the background, and delete them then.

    Adopted ones are not deleted but remembered as retired: their Deployment ends them.
    """

    pods: tuple[Pod, ...]
    deadline: float
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Adopt:
    """Write on a Deployment that this cluster has adopted it, unless it belongs to another.

    `group` is the workers' DaskWorkerGroup, None for the scheduler's.
    """

    deployment: str
    group: str | None


@dataclass(frozen=True, slots=True)
class Release:
    """Take that off again, once the DaskCluster is certain to be gone."""

    deployment: str


@dataclass(frozen=True, slots=True)
class FindPods:
    """Label the pods of an adopted Deployment that carry no label of ours, so that they are watched."""

    deployment: str
    group: str | None


@dataclass(frozen=True, slots=True)
class ReadToken:
    """Read the token that an adopted scheduler has, from where its Deployment has it."""

    deployment: str


@dataclass(frozen=True, slots=True)
class DeletePod:
    pod: Pod
    why: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a custom resource; what it owns goes with it."""

    kind: Kind
    name: str
    uid: str
    why: str


@dataclass(frozen=True, slots=True)
class AskTarget:
    """Ask the scheduler how many workers it wants, for an autoscaler."""

    autoscaler: str
    duration: str


@dataclass(frozen=True, slots=True)
class AskIdle:
    """Ask the scheduler since when it is idle."""


@dataclass(frozen=True, slots=True)
class AwaitScheduler:
    """Find out, in the background, when this scheduler pod begins to answer."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class AskEvents:
    """Read from its events what keeps a pod from being started."""

    pod: Pod


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop what is remembered under this refusal: it no longer holds."""

    refusal: str


@dataclass(frozen=True, slots=True)
class SetBackoff:
    group: str
    backoff: Backoff


Action = (
    Replace
    | Create
    | TryTemplate
    | EnsureToken
    | CreateWorkers
    | Patch
    | Resize
    | MarkVictims
    | RetireAll
    | Retire
    | DeletePod
    | Delete
    | AskTarget
    | AskIdle
    | AwaitScheduler
    | AskEvents
    | Forget
    | SetBackoff
    | EnsureTls
    | Adopt
    | Release
    | FindPods
    | ReadToken
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions to apply now, in any order, and the time to look again if nothing happens before."""

    actions: tuple[Action, ...] = ()
    wake_at: float | None = None


@dataclass(frozen=True, slots=True)
class StatusWrite:
    """The whole status that a custom resource should have, and the events that tell what became new in it."""

    kind: Kind
    name: str
    status: Json
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event on a custom resource."""

    warning: bool
    reason: str
    message: str
