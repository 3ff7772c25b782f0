"""What others may write: a Job, JobSet or pod of theirs that carries our label must not keep the operator from reading the cluster."""

from typing import Any

import pytest

from olivine_api import names
from olivine_operator.plan.observed import ANNOTATION_PODS, INDEX_LABEL, ChildView, PodView


def metadata(labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "namespace": "team-a",
        "name": "theirs",
        "uid": "u",
        "resourceVersion": "1",
        "creationTimestamp": "2026-01-01T12:00:00Z",
        "labels": {names.LABEL_JOB: "tone"} | (labels or {}),
        "annotations": annotations or {},
    }


@pytest.mark.parametrize(("told", "index"), {"first": 0, "12": 12, "1.5": 0, "9" * 63: 0, "": 0}.items())
def test_an_index_that_is_no_number_is_the_first(told: str, index: int) -> None:
    assert PodView.from_raw({"metadata": metadata({INDEX_LABEL: told}), "spec": {}}).index == index


@pytest.mark.parametrize(("told", "pods"), {"2": 2, "two": None, "9" * 5000: None}.items())
def test_a_size_that_is_no_number_is_none(told: str, pods: int | None) -> None:
    assert ChildView.from_raw({"metadata": metadata(annotations={ANNOTATION_PODS: told}), "spec": {}}).asked_pods == pods


def test_a_jobset_of_nothing_can_be_read() -> None:
    child = ChildView.from_raw({"metadata": metadata(), "spec": {"replicatedJobs": []}})
    assert (child.kind, child.parallelism) == ("JobSet", 1)
