"""The manifests of the child."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from olivine_api import names
from olivine_api.finetunejob import parse_spec
from olivine_operator.plan.child import build_child
from olivine_operator.plan.outcome import CreateChild
from olivine_operator.plan.settings import OperatorSettings, TrainerSettings
from tests.unit.operator.builders import SETTINGS, SPEC, UID, job

DEFAULTS: dict[str, Any] = {
    "volumes": [{"name": "environment", "emptyDir": {}}],
    "volumeMounts": [{"name": "environment", "mountPath": "/env"}],
    "env": [{"name": "A", "value": "admin"}, {"name": "B", "value": "admin"}],
    "resources": {"limits": {"cpu": "1"}},
    "nodeSelector": {"pool": "a"},
    "tolerations": [{"key": "x"}],
}


def build(labels: dict[str, str] | None = None, settings: OperatorSettings = SETTINGS, **spec: Any) -> CreateChild:
    return build_child(job(labels=labels, **spec), parse_spec({**SPEC, **spec}), "CA", settings)


def pod_of(made: CreateChild) -> dict[str, Any]:
    return made.job["spec"]["template"]["spec"]


def with_defaults() -> OperatorSettings:
    return OperatorSettings.model_validate({"namespace": "o", "trainer": {"image": "t:1", "podDefaults": DEFAULTS}})


def test_only_labels_of_kueue_and_olivine_are_copied_and_ours_win() -> None:
    labels = {
        "kueue.x-k8s.io/priority": "p",
        "olivine.dev/team": "t",
        "app.kubernetes.io/instance": "argo",
        names.LABEL_JOB: "other",
    }
    made = build(labels)
    expected = {
        "kueue.x-k8s.io/priority": "p",
        "olivine.dev/team": "t",
        names.LABEL_JOB: "tone",
        names.LABEL_JOB_UID: UID,
        names.LABEL_MANAGED_BY: "olivine",
    }
    assert made.job["metadata"]["labels"] == expected
    assert made.config_map["metadata"]["labels"] == expected
    assert "kueue.x-k8s.io/priority" not in made.job["spec"]["template"]["metadata"]["labels"]
    assert made.job["metadata"]["ownerReferences"][0]["controller"] is True


def test_the_config_map_says_what_to_train_for_whom_and_whom_to_trust() -> None:
    data = build().config_map["data"]
    assert parse_spec(json.loads(data[names.CONFIG_SPEC])) == parse_spec(SPEC)
    assert json.loads(data[names.CONFIG_IDENTITY])["child"] == "tone-012345"
    assert data[names.CONFIG_CA] == "CA"


def test_the_same_spec_gives_the_same_manifests() -> None:
    assert build() == build()
    digest = names.ANNOTATION_SPEC_DIGEST
    assert build().job["metadata"]["annotations"][digest] != build(training={"maxSteps": 11}).job["metadata"]["annotations"][digest]


def test_the_failure_policy_follows_the_exit_codes() -> None:
    users, interrupted, disrupted = build().job["spec"]["podFailurePolicy"]["rules"]
    assert users == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "trainer", "operator": "In", "values": [10, 11, 12, 13, 21]},
    }
    assert interrupted["onExitCodes"]["values"] == [40]
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


def test_each_source_has_its_secret_behind_its_prefix() -> None:
    data = {**SPEC["data"], "train": {"uri": "s3://d", "secretRef": {"name": "rows"}}}
    made = build(data=data, storage={"uri": "s3://o", "secretRef": {"name": "store"}})
    assert pod_of(made)["containers"][0]["envFrom"] == [
        {"prefix": "OLIVINE_STORAGE_", "secretRef": {"name": "store"}},
        {"prefix": "OLIVINE_TRAIN_", "secretRef": {"name": "rows"}},
    ]


def test_of_equal_variables_the_users_wins_over_the_admins_and_ours_over_both() -> None:
    admins = [{"name": name, "value": "admin"} for name in ("A", "B", names.ENV_STATUS_URL)]
    settings = OperatorSettings.model_validate(
        {"namespace": "o", "trainer": {"image": "t:1", "podDefaults": DEFAULTS | {"env": admins}}}
    )
    made = build(settings=settings, pods={"env": [{"name": "B", "value": "user"}]})
    env = {item["name"]: item.get("value") for item in pod_of(made)["containers"][0]["env"]}
    assert (env["A"], env["B"]) == ("admin", "user")
    assert env[names.ENV_STATUS_URL] == "https://olivine-status.o.svc"


def test_the_admins_defaults_hold_unless_the_user_says_otherwise() -> None:
    pod = pod_of(build(settings=with_defaults()))
    container = pod["containers"][0]
    assert container["resources"] == {"limits": {"cpu": "1"}}
    assert (pod["nodeSelector"], pod["tolerations"]) == ({"pool": "a"}, [{"key": "x"}])
    assert DEFAULTS["volumes"][0] in pod["volumes"]
    assert DEFAULTS["volumeMounts"][0] in container["volumeMounts"]
    wishes = {"resources": {"limits": {"memory": "1Gi"}}, "nodeSelector": {"disk": "ssd"}, "image": "mine:2"}
    pod = pod_of(build(settings=with_defaults(), pods=wishes))
    assert pod["containers"][0]["resources"] == {"limits": {"memory": "1Gi"}}
    assert pod["containers"][0]["image"] == "mine:2"
    assert pod["nodeSelector"] == {"pool": "a", "disk": "ssd"}


@pytest.mark.parametrize(("size", "right"), {"256Mi": True, "1.5G": True, "1024": True, "1GB": False, "lots": False}.items())
def test_a_size_of_dev_shm_that_no_api_server_takes_is_refused(size: str, right: bool) -> None:
    schema = json.loads((Path(__file__).parents[3] / "charts/olivine/values.schema.json").read_text())
    pattern = schema["properties"]["trainer"]["properties"]["sharedMemory"]["pattern"]
    assert (re.search(pattern, size) is not None) is right
    with contextlib.nullcontext() if right else pytest.raises(ValidationError):
        TrainerSettings(image="t:1", shared_memory=size)


def test_the_pod_meets_the_restricted_level_and_gets_no_token_but_its_own() -> None:
    pod = pod_of(build())
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    context = pod["containers"][0]["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    token = next(v for v in pod["volumes"] if "projected" in v)["projected"]["sources"][0]["serviceAccountToken"]
    assert (token["audience"], token["path"]) == (names.TOKEN_AUDIENCE, names.TOKEN_FILE)
    writable = {m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if not m.get("readOnly")}
    assert writable == {names.SCRATCH_DIR, "/tmp", "/dev/shm"}
    assert "command" not in pod["containers"][0]
