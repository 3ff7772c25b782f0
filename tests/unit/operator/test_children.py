"""What becomes of children that the API server refuses, or has already."""

import asyncio
from typing import Any, cast

import pytest

from olivine_api.finetunejob import parse_spec
from olivine_api.reasons import Reason
from olivine_operator.plan.child import build_config_map
from olivine_operator.plan.observed import Obstacle
from olivine_operator.plan.outcome import KeepConfigMap
from olivine_operator.runtime.api import JOBS, ApiError, KubeApi
from olivine_operator.runtime.cache import Cache
from olivine_operator.runtime.children import Children, obstacle_of
from tests.unit.operator.builders import SPEC, job

QUANTITY = "Job in version \"v1\" cannot be handled as a Job: quantities must match the regular expression '^...$'"
POD = 'Job.batch "tone-012345" is invalid: spec.template.spec'

REFUSALS: dict[str, tuple[dict[str, Any], int, str, bool]] = {
    "the user's quantity": ({"resources": {"limits": {"cpu": "plenty"}}}, 400, QUANTITY, True),
    "the administrator's quantity": ({}, 400, QUANTITY, False),
    "the administrator's variable": (
        {"env": []},
        400,
        "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string",
        False,
    ),
    "the user's resources": (
        {"resources": {"requests": {"cpu": 2}}},
        422,
        f'{POD}.containers[0].resources.requests: Invalid value: "2"',
        True,
    ),
    "the administrator's resources": ({"env": []}, 422, f'{POD}.containers[0].resources.requests: Invalid value: "2"', False),
    "the user's tolerations": ({"tolerations": [{}]}, 422, f"{POD}.tolerations[0].operator: Invalid value", True),
    "a mount without a volume": (
        {"image": "mine:2"},
        422,
        f'{POD}.containers[0].volumeMounts[5].name: Not found: "environment"',
        False,
    ),
    "a variable's source": ({"env": [{"name": "A"}]}, 422, f"{POD}.containers[0].envFrom[0]: Invalid value", False),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_ends_the_job_only_where_its_user_can_mend_it(case: str) -> None:
    pods, code, message, permanent = REFUSALS[case]
    found = obstacle_of(job(pods=pods), JOBS, "tone-012345", ApiError(code, "Invalid", message))
    assert (found.permanent, found.reason) == (permanent, Reason.INVALID_SPEC if permanent else Reason.CHILD_REFUSED)
    assert message in found.message
    assert ("trainer.podDefaults" in found.message) is not permanent


def test_a_webhook_that_does_not_answer_is_told_and_tried_again() -> None:
    message = 'Internal error occurred: failed calling webhook "mjob.kb.io": connection refused'
    found = obstacle_of(job(), JOBS, "tone-012345", ApiError(500, "InternalError", message))
    assert found == Obstacle(reason=Reason.CHILD_REFUSED, message=f"the Job tone-012345 is tried again: {message}")


@pytest.mark.parametrize("code", [0, 409, 429, 500, 503])
def test_what_another_try_settles_is_no_obstacle(code: int) -> None:
    with pytest.raises(ApiError):
        obstacle_of(job(), JOBS, "tone-012345", ApiError(code, "", "later"))


@pytest.mark.parametrize("there", [False, True])
def test_a_config_map_is_made_where_it_is_gone_and_else_left_as_it_is(there: bool) -> None:
    made: list[dict[str, Any]] = []
    manifest = build_config_map(job(), parse_spec(SPEC), "CA")

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
