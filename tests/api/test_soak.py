"""Many jobs come and go: nothing is made twice, nothing is forgotten, nothing piles up in the operator."""

import pytest

from tests.api.jobs import Namespace
from tests.api.kube import FTJ, JOBS
from tests.api.operator_process import OperatorProcess
from tests.support.wait import wait_for

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

ROUNDS, JOBS_A_ROUND = 4, 150
# The first round fills the caches of clients and allocator; later ones may not add to it. Seen: under 5 %.
GROWTH = 1.25


def test_rounds_of_jobs_leave_the_operator_as_it_was(ns: Namespace, operator: OperatorProcess) -> None:
    resident: list[int] = []
    for number in range(ROUNDS):
        before = operator.requests()
        names = [f"soak-{number}-{index}" for index in range(JOBS_A_ROUND)]
        for name in names:
            ns.apply(name)
        wait_for(
            "all have their Job", lambda: len(ns.kube.must("GET", ns.path(JOBS))["items"]) == JOBS_A_ROUND, seconds=120, every=1
        )
        after = operator.requests()
        for kind in ("ConfigMap", "Job"):
            assert after["POST", kind] - before.get(("POST", kind), 0) == JOBS_A_ROUND
        ns.kube.must("DELETE", ns.path(FTJ))
        wait_for("all children are gone", lambda: not ns.kube.must("GET", ns.path(JOBS))["items"], seconds=180, every=1)
        resident.append(operator.resident_kib())
    assert resident[-1] <= GROWTH * resident[0], resident
