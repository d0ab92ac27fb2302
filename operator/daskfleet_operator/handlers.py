"""kopf's part: it watches the custom resources and tells us. Handlers file what they are told and wake a reconcile.

Plain event handlers, on purpose: they leave no finalizers, no annotations and no progress in status behind on users'
objects, and what they miss (kopf calls them edge by edge) the caches and the level-triggered plan make up for.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import kopf

from daskfleet_operator import names
from daskfleet_operator.kube.config import Connection
from daskfleet_operator.kube.kinds import CUSTOM_KINDS, Json, Kind
from daskfleet_operator.kube.watch import Sink

BY_PLURAL = {kind.plural: kind for kind in CUSTOM_KINDS}


class Memo(Protocol):
    """What kopf carries to the handlers: the running operator."""

    connection: Connection
    store: Sink


@kopf.on.event(names.GROUP, names.VERSION, "daskclusters")
@kopf.on.event(names.GROUP, names.VERSION, "daskworkergroups")
@kopf.on.event(names.GROUP, names.VERSION, "daskautoscalers")
@kopf.on.event(names.GROUP, names.VERSION, "daskjobs")
async def on_event(event: kopf.RawEvent, resource: kopf.Resource, memo: Any, **_: object) -> None:
    """File a custom resource; the store wakes the reconcile of its cluster."""
    kind: Kind = BY_PLURAL[resource.plural]
    seen = cast(Json, event["object"])
    sink = cast(Memo, memo).store
    if event["type"] == "DELETED":
        sink.deleted(kind, seen)
    else:
        sink.changed(kind, seen)


@kopf.on.login()
async def login(memo: Any, **_: object) -> kopf.ConnectionInfo:
    """The credentials of our own client: one configuration, not two that may disagree."""
    connection = cast(Memo, memo).connection
    return kopf.ConnectionInfo(
        server=connection.server,
        ca_path=connection.ca_file,
        insecure=connection.insecure,
        token=connection.bearer(),
        certificate_path=connection.certificate_file,
        private_key_path=connection.key_file,
        default_namespace=connection.namespace,
    )


@kopf.on.startup()
async def configure(settings: kopf.OperatorSettings, memo: Any, **_: object) -> None:
    """kopf's settings: no events made of log lines, and streams that end so that a dead one is noticed."""
    period = cast(Any, memo).settings.watch_period
    settings.posting.enabled = False
    settings.watching.server_timeout = max(1, int(period))  # sent as it is, and the API server takes integers only
    settings.watching.inactivity_timeout = 2 * period
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 20
    settings.queueing.idle_timeout = 1.0
    settings.scanning.disabled = bool(cast(Any, memo).settings.namespaces)
