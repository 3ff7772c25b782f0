"""What is news to whom."""

from typing import Any

from olivine_operator.handlers.feed import Feed, Watched
from olivine_operator.plan.observed import NamespaceView
from olivine_operator.runtime.api import NAMESPACES
from olivine_operator.runtime.cache import Cache
from olivine_operator.runtime.reports import Memory


def raw(name: str, version: int, namespace: str | None = "team-a", **members: Any) -> dict[str, Any]:
    metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version), "generation": 1}
    place = {"namespace": namespace} if namespace is not None else {}
    return {"metadata": metadata | place | members.pop("metadata", {}), "spec": {}, "status": {}, **members}


def test_a_namespace_with_other_labels_may_have_another_policy_and_its_bundles_are_looked_at() -> None:
    cache, asked = Cache(), list[Any]()
    feed = Feed(cache, Memory(), Memory(), asked.append)
    namespaces = Watched(kind=NAMESPACES, shelf=cache.namespaces, read=NamespaceView.from_raw)
    bundles = next(one for one in feed.watched if one.shelf is cache.bundles)
    feed.see(bundles, raw("voices", 1))
    feed.see(bundles, raw("others", 2, "team-b"))
    feed.see(namespaces, raw("team-a", 3, None))
    asked.clear()
    feed.see(namespaces, raw("team-a", 4, None))
    assert ("team-a", "bundle.voices") not in asked
    feed.see(namespaces, raw("team-a", 5, None, metadata={"labels": {"tier": "open"}}))
    assert [key for key in asked if key[1]] == [("team-a", "bundle.voices")]


def test_a_bundle_is_looked_at_when_a_job_ends_is_relabelled_or_goes_and_not_at_each_step() -> None:
    cache, asked = Cache(), list[Any]()
    feed = Feed(cache, Memory(), Memory(), asked.append)
    jobs = feed.watched[0]
    feed.see(next(one for one in feed.watched if one.shelf is cache.bundles), raw("voices", 1, spec={"selector": {}}))
    steps: list[dict[str, Any]] = [
        {"status": {"phase": "Running"}},
        {"status": {"phase": "Running", "progress": {"step": 1}}},
        {"status": {"phase": "Succeeded"}},
        {"status": {"phase": "Succeeded"}, "metadata": {"labels": {"team": "voices"}}},
    ]
    news: list[bool] = []
    for version, members in enumerate(steps, start=2):
        asked.clear()
        feed.see(jobs, raw("tone", version, **members))
        news.append(("team-a", "bundle.voices") in asked)
    assert news == [True, False, True, True]
    asked.clear()
    feed.gone(jobs, "uid-tone")
    assert ("team-a", "bundle.voices") in asked
