"""kopf's watches, and nothing else of kopf: low-level events only, no annotations, no finalizers, no Events, no peering."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kopf

from olivine_operator.handlers.feed import Feed, Watched

_REQUEST_SECONDS = 20
# The API server ends a watch after this; a little later the client does, in case it is not there any more.
_WATCH_SECONDS = 240
_WATCH_GRACE_SECONDS = 20
_NOT_FOUND = 404


class KindGoneError(Exception):
    """Somebody took a CustomResourceDefinition out of the cluster."""


async def watch(feed: Feed, stopping: Callable[[], None]) -> None:
    """Feeds what the watches tell; returns on SIGTERM, fails where a watch cannot go on. Calls `stopping` when either begins."""
    registry = kopf.OperatorRegistry()

    async def clean_up(**_: Any) -> None:
        stopping()

    kopf.on.cleanup(id="stopping", registry=registry)(clean_up)
    kopf.on.login(id="login", registry=registry)(_login)
    for watched in feed.watched:
        prefix = watched.kind.prefix.removeprefix("/apis/").removeprefix("/api/")
        group, _, version = prefix.rpartition("/")
        kopf.on.event(group, version, watched.kind.plural, id=watched.kind.plural, registry=registry)(_handler(feed, watched))
    try:
        await kopf.operator(registry=registry, settings=_settings(feed), standalone=True, clusterwide=True)
    except Exception as error:
        # kopf's own class of it is private.
        if getattr(error, "status", None) == _NOT_FOUND:
            raise KindGoneError("the cluster lacks a kind that was watched: only a new start can do without it") from error
        raise


def _handler(feed: Feed, watched: Watched) -> Any:
    async def handle(event: dict[str, Any], **_: Any) -> None:
        feed.hear(watched, event["type"], event["object"])

    return handle


def _settings(feed: Feed) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # needs no right to see CRDs and namespaces
    settings.peering.standalone = True
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.progress_storage = _NoProgress()
    settings.networking.request_timeout = _REQUEST_SECONDS
    settings.networking.connect_timeout = _REQUEST_SECONDS
    settings.networking.enforce_retry_after = True
    settings.watching.server_timeout = _WATCH_SECONDS
    settings.watching.client_timeout = _WATCH_SECONDS + _WATCH_GRACE_SECONDS
    settings.watching.connect_timeout = _REQUEST_SECONDS
    settings.queueing.idle_timeout = 1.0  # a task for each object lives no longer than it is of use
    settings.queueing.exit_timeout = 1.0
    for watched in feed.watched:
        if watched.label is not None:
            settings.watching.label_selectors[watched.kind.plural] = watched.label
    return settings


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """The same choice as the operator's own client makes."""
    in_cluster = Path("/var/run/secrets/kubernetes.io/serviceaccount/token").exists()
    if in_cluster and not os.environ.get("KUBECONFIG"):
        return kopf.login_with_service_account(**kwargs)
    return kopf.login_with_kubeconfig(**kwargs)


class _NoDiffBase(kopf.DiffBaseStorage):
    """kopf compares each object with what it last saw, even where nobody asks: here there is nothing to compare."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """Low-level handlers have no progress."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence
