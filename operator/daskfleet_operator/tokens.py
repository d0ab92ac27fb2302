"""The token of each cluster, and the Secret it is kept in.

A Secret that is deleted while an operator runs comes back with the same token. Of one that was deleted while none ran
the token is lost: pods that run go on with it and tell nobody, and those that come have another. That is found out by
asking the scheduler (`asking`), whose pod then is remembered, for the cluster's conditions.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from dataclasses import replace

from daskfleet_operator import names
from daskfleet_operator.kube.client import Api, ApiError
from daskfleet_operator.kube.kinds import SECRET, Json
from daskfleet_operator.kube.objects import SOON, of_a_predecessor
from daskfleet_operator.plan import model
from daskfleet_operator.schedulers import Schedulers
from daskfleet_operator.store import Store


class Tokens:
    """Sees to the Secrets with tokens.

    Parameters
    ----------
    refused
        Remembers that the API server would not make an object, whose body is given.
    ask
        Has the scheduler that runs, if one does, say whether it takes the token.
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
        *,
        refused: Callable[[model.Key, str, ApiError, Json], bool],
        ask: Callable[[model.Key], None],
        wake_in: Callable[[model.Key, float], None],
        now: Callable[[], float],
    ) -> None:
        self._api = api
        self._store = store
        self._schedulers = schedulers
        self._refused = refused
        self._ask = ask
        self._wake_in = wake_in
        self._now = now

    async def ensure(self, key: model.Key, action: model.EnsureToken) -> bool:
        """Create the token Secret with the token known here, if one is, else a new one; one that exists stays."""
        earlier = self._store.observed(key).memory.token_ensured is not None  # else an earlier cluster's, of that name
        known = (self._schedulers.token(key) if earlier else None) or secrets.token_hex(32)
        body = {**action.body, "stringData": {names.TOKEN_KEY: known}}
        try:
            await self._api.create(SECRET, key.namespace, body)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                return self._refused(key, f"Secret/{action.name}", error, action.body)
            found = await self._api.find(SECRET, key.namespace, action.name)
            if found is None or of_a_predecessor(found, action.body):
                self._wake_in(key, SOON)
                return False
            known = base64.b64decode((found.get("data") or {}).get(names.TOKEN_KEY, "")).decode()
        self._schedulers.set_token(key, known)
        self._store.accepted(key, f"Secret/{action.name}")
        self._store.remember(key, lambda memory: replace(memory, token_ensured=self._now()))
        self._ask(key)
        return True
