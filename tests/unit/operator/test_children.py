"""What becomes of children that the API server refuses, or has already."""

import asyncio
from typing import Any, cast

import pytest

from olivine_api.finetunejob import parse_spec
from olivine_api.reasons import Reason
from olivine_operator.plan.child import build_child, build_config_map
from olivine_operator.plan.observed import Obstacle
from olivine_operator.plan.outcome import KeepConfigMap
from olivine_operator.plan.settings import PodDefaults, TrainerSettings
from olivine_operator.runtime.api import JOBS, JOBSETS, ApiError, Kind, KubeApi
from olivine_operator.runtime.cache import Cache
from olivine_operator.runtime.children import Children
from olivine_operator.runtime.obstacles import obstacle_of
from tests.unit.operator.builders import SETTINGS, SPEC, job

REFUSED = 'Job.batch "tone-012345" is invalid: spec.template.spec.tolerations[0].operator: Invalid value'
IN_JOBSET = "spec.replicatedJobs[0].template.spec.template.spec.containers[0].resources.requests: Invalid value"


@pytest.mark.parametrize("users", [False, True])
def test_a_refusal_ends_the_job_only_where_its_user_can_mend_it(users: bool) -> None:
    found = obstacle_of(JOBS, "tone-012345", ApiError(422, "Invalid", REFUSED), users=users)
    assert (found.permanent, found.reason) == (users, Reason.INVALID_SPEC if users else Reason.CHILD_REFUSED)
    where = "spec.pods.tolerations[0].operator" if users else "spec.template.spec.tolerations[0].operator"
    assert f"{where}: Invalid value" in found.message
    assert ("trainer.podDefaults" in found.message) is not users


def test_a_refusal_names_the_field_that_the_user_wrote() -> None:
    found = obstacle_of(JOBSETS, "tone-012345", ApiError(422, "Invalid", IN_JOBSET), users=True)
    assert found.message.endswith("the JobSet tone-012345: spec.pods.resources.requests: Invalid value")


class Judge:
    """An API server that refuses each Job with a bad toleration, and remembers what it was asked."""

    def __init__(self) -> None:
        self.dry_runs: list[bool] = []

    async def create(self, kind: Kind, _: Any, body: dict[str, Any], *, dry_run: bool = False) -> Any:
        if kind is not JOBS:
            return body
        self.dry_runs.append(dry_run)
        if any(item.get("operator") == "bad" for item in body["spec"]["template"]["spec"].get("tolerations", ())):
            raise ApiError(422, "Invalid", REFUSED)
        return body


@pytest.mark.parametrize(("admins", "users"), [("bad", "Exists"), ("Exists", "bad"), ("bad", "bad")])
def test_where_both_set_a_field_the_same_child_without_the_users_wishes_tells_whose_fault_it_is(admins: str, users: str) -> None:
    """The refused field's path names neither."""
    trainer = TrainerSettings(image="t", pod_defaults=PodDefaults(tolerations=[{"key": "a", "operator": admins}]))
    view = job(pods={"tolerations": [{"key": "b", "operator": "Exists"}]})
    made = build_child(view, parse_spec(dict(view.spec)), "CA", SETTINGS.model_copy(update={"trainer": trainer}))
    made.job["spec"]["template"]["spec"]["tolerations"][1]["operator"] = users
    judge = Judge()
    found = asyncio.run(Children(cast(KubeApi, judge), Cache()).perform(view, made))
    assert found is not None
    assert found.permanent is (admins != "bad")
    assert judge.dry_runs == [False, True]


def test_a_webhook_that_does_not_answer_is_told_and_tried_again() -> None:
    message = 'Internal error occurred: failed calling webhook "mjob.kb.io": connection refused'
    found = obstacle_of(JOBS, "tone-012345", ApiError(500, "InternalError", message), users=True)
    assert found == Obstacle(reason=Reason.CHILD_REFUSED, message=f"the Job tone-012345 is tried again: {message}")


def test_a_quota_on_jobs_is_named() -> None:
    error = ApiError(403, "Forbidden", 'jobs.batch "tone-012345" is forbidden: exceeded quota: few')
    assert obstacle_of(JOBS, "tone-012345", error, users=True).reason == Reason.QUOTA_EXCEEDED


@pytest.mark.parametrize("code", [0, 409, 429, 500, 503])
def test_what_another_try_settles_is_no_obstacle(code: int) -> None:
    with pytest.raises(ApiError):
        obstacle_of(JOBS, "tone-012345", ApiError(code, "", "later"), users=True)


@pytest.mark.parametrize("there", [False, True])
def test_a_config_map_is_made_where_it_is_gone_and_else_left_as_it_is(there: bool) -> None:
    made: list[dict[str, Any]] = []
    manifest = build_config_map(job(), parse_spec(SPEC), {})

    class Api:
        """An API server that has the ConfigMap, or not."""

        async def create(self, _: Any, __: str, body: dict[str, Any]) -> Any:
            if there:
                raise ApiError(409, "AlreadyExists", "it is there")
            made.append(body)
            return body

        async def get(self, *_: Any) -> Any:
            return manifest

    children = Children(cast(KubeApi, Api()), Cache())
    assert asyncio.run(children.perform(job(), KeepConfigMap(config_map=manifest))) is None
    assert made == ([] if there else [manifest])
