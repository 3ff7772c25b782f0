"""The manifests of the child."""

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from olivine_api import names
from olivine_api.finetunejob import parse_spec
from olivine_api.status import Overrides
from olivine_operator.plan.child import build_child
from olivine_operator.plan.outcome import CreateChild
from olivine_operator.plan.settings import OperatorSettings, TrainerSettings
from tests.unit.operator.builders import KEY, SETTINGS, SPEC, UID, job

DEFAULTS: dict[str, Any] = {
    "volumes": [{"name": "environment", "emptyDir": {}}],
    "volumeMounts": [{"name": "environment", "mountPath": "/env"}],
    "env": [{"name": "A", "value": "admin"}, {"name": "B", "value": "admin"}],
    "resources": {"limits": {"cpu": "1"}},
    "nodeSelector": {"pool": "a"},
    "tolerations": [{"key": "x"}],
}


def build(
    labels: dict[str, str] | None = None, settings: OperatorSettings = SETTINGS, *, jobsets: bool = False, **spec: Any
) -> CreateChild:
    return build_child(job(labels=labels, **spec), parse_spec({**SPEC, **spec}), "CA", settings, jobsets=jobsets)


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
    assert json.loads(data[names.CONFIG_WORLD]) == {"pods": 1, "processesPerPod": 1}
    assert names.CONFIG_OVERRIDES not in data


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
    defaults = {**DEFAULTS, "env": [*DEFAULTS["env"], {"name": names.ENV_STATUS_URL, "value": "elsewhere"}]}
    settings = OperatorSettings.model_validate({"namespace": "o", "trainer": {"image": "t:1", "podDefaults": defaults}})
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


def test_where_pods_go_and_what_they_carry_has_defaults_too() -> None:
    spread = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    defaults = {
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [spread],
        "priorityClassName": "training",
        "runtimeClassName": "nvidia",
        "schedulerName": "volcano",
        "labels": {"cost": "ml", names.LABEL_JOB: "nobody"},
        "annotations": {"a": "admin", "b": "admin"},
    }
    settings = OperatorSettings.model_validate({"namespace": "o", "trainer": {"image": "t:1", "podDefaults": defaults}})
    pod = pod_of(build(settings=settings))
    assert {key: pod[key] for key in ("affinity", "priorityClassName", "runtimeClassName", "schedulerName")} == {
        key: defaults[key] for key in ("affinity", "priorityClassName", "runtimeClassName", "schedulerName")
    }
    # A constraint without a selector means the job's own pods, whoever set it.
    assert pod["topologySpreadConstraints"] == [{"labelSelector": {"matchLabels": {names.LABEL_JOB_UID: UID}}, **spread}]
    wishes = {"priorityClassName": "mine", "labels": {"cost": "mine"}, "annotations": {"b": "user"}, "schedulerName": "mine"}
    made = build(settings=settings, pods=wishes)
    metadata = made.job["spec"]["template"]["metadata"]
    assert (pod_of(made)["priorityClassName"], pod_of(made)["schedulerName"]) == ("mine", "mine")
    assert metadata["annotations"] == {"a": "admin", "b": "user"}
    assert metadata["labels"]["cost"] == "mine"
    assert metadata["labels"][names.LABEL_JOB] == KEY[1]
    # The chart's own values say "none" by an empty text.
    empty = dict.fromkeys(("priorityClassName", "runtimeClassName", "schedulerName"), "")
    settings = OperatorSettings.model_validate({"namespace": "o", "trainer": {"image": "t:1", "podDefaults": empty}})
    assert not {"priorityClassName", "runtimeClassName", "schedulerName"} & set(pod_of(build(settings=settings)))


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


def test_what_was_healed_holds_for_a_child_that_is_made_anew() -> None:
    overrides = Overrides(batch_size=4, gradient_accumulation_steps=2)
    made = build_child(job(), parse_spec(SPEC), "CA", SETTINGS, overrides=overrides)
    assert json.loads(made.config_map["data"][names.CONFIG_OVERRIDES]) == {"batchSize": 4, "gradientAccumulationSteps": 2}


class TestSeveralPods:
    wishes: ClassVar[dict[str, Any]] = {"pods": {"count": 3, "processesPerPod": 2}}

    def test_are_indexes_of_one_job_that_find_each_other_by_name(self) -> None:
        made = build(**self.wishes)
        spec = made.job["spec"]
        assert (made.job["kind"], spec["completions"], spec["parallelism"]) == ("Job", 3, 3)
        pod = pod_of(made)
        assert pod["subdomain"] == "tone-012345"
        env = {item["name"]: item.get("value") for item in pod["containers"][0]["env"]}
        assert env[names.ENV_LEADER_HOST] == "tone-012345-0.tone-012345"
        assert made.service is not None
        assert made.service["metadata"]["name"] == "tone-012345"
        assert made.service["metadata"]["ownerReferences"][0]["uid"] == UID
        assert made.service["spec"]["clusterIP"] == "None"
        assert made.service["spec"]["publishNotReadyAddresses"] is True
        # The selector meets the pods' labels.
        assert made.service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
        assert json.loads(made.config_map["data"][names.CONFIG_WORLD]) == {"pods": 3, "processesPerPod": 2}

    def test_are_a_jobset_where_there_are_jobsets(self) -> None:
        made = build({"kueue.x-k8s.io/queue-name": "q"}, jobsets=True, **self.wishes)
        assert (made.job["kind"], made.job["apiVersion"]) == ("JobSet", "jobset.x-k8s.io/v1alpha2")
        assert made.service is None
        spec = made.job["spec"]
        assert spec["suspend"] is True
        assert spec["network"]["subdomain"] == "tone-012345"
        (replicated,) = spec["replicatedJobs"]
        assert (replicated["name"], replicated["replicas"]) == ("trainer", 1)
        inner = replicated["template"]
        assert "suspend" not in inner["spec"]
        assert (inner["spec"]["completions"], inner["spec"]["parallelism"]) == (3, 3)
        # The queue is the JobSet's; the Job leads back to the FineTuneJob.
        assert "kueue.x-k8s.io/queue-name" not in inner["metadata"]["labels"]
        assert inner["metadata"]["labels"][names.LABEL_JOB] == "tone"
        env = {item["name"]: item.get("value") for item in inner["spec"]["template"]["spec"]["containers"][0]["env"]}
        assert env[names.ENV_LEADER_HOST] == "tone-012345-trainer-0-0.tone-012345"

    def test_one_pod_is_a_plain_job_and_needs_no_name(self) -> None:
        made = build(jobsets=True)
        assert (made.job["kind"], made.service) == ("Job", None)
        assert "subdomain" not in pod_of(made)
        assert names.ENV_LEADER_HOST not in {item["name"] for item in pod_of(made)["containers"][0]["env"]}


def test_everything_that_a_user_may_choose_is_in_the_pod() -> None:
    affinity = {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}
            ]
        }
    }
    wishes: dict[str, Any] = {
        "affinity": affinity,
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        "runtimeClassName": "gvisor",
        "schedulerName": "volcano",
        "priorityClassName": "low",
        "serviceAccountName": "robot",
        "imagePullSecrets": [{"name": "pull"}],
        "terminationGracePeriodSeconds": 30,
        "envFrom": [{"prefix": "X_", "configMapRef": {"name": "c"}}],
        "env": [{"name": "N", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        "volumes": [{"name": "v", "secret": {"secretName": "s"}}],
        "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": True}],
        "sharedMemory": "2Gi",
        "labels": {"team": "t"},
        "annotations": {"note": "n"},
    }
    made = build(storage={"uri": "s3://o", "secretRef": {"name": "store"}}, pods=wishes)
    pod, container = pod_of(made), pod_of(made)["containers"][0]
    assert pod["affinity"] == affinity
    assert pod["topologySpreadConstraints"] == [
        {**wishes["topologySpreadConstraints"][0], "labelSelector": {"matchLabels": {names.LABEL_JOB_UID: UID}}}
    ]
    assert (pod["runtimeClassName"], pod["schedulerName"], pod["priorityClassName"]) == ("gvisor", "volcano", "low")
    assert (pod["serviceAccountName"], pod["imagePullSecrets"]) == ("robot", [{"name": "pull"}])
    assert pod["terminationGracePeriodSeconds"] == 30
    # Ours come last: of equal names the last wins.
    assert container["envFrom"] == [*wishes["envFrom"], {"prefix": "OLIVINE_STORAGE_", "secretRef": {"name": "store"}}]
    assert wishes["env"][0] in container["env"]
    assert wishes["volumes"][0] in pod["volumes"]
    assert wishes["volumeMounts"][0] in container["volumeMounts"]
    shm = next(v for v in pod["volumes"] if v["name"] == "olivine-shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    metadata = made.job["spec"]["template"]["metadata"]
    assert (metadata["labels"]["team"], metadata["annotations"]) == ("t", {"note": "n"})
    # The same child without them, to tell whose fault a refusal is.
    assert "affinity" not in made.plain["spec"]["template"]["spec"]


def test_claims_are_mounted_where_the_trainer_looks_and_are_writable_only_for_storage() -> None:
    data = {**SPEC["data"], "train": {"uri": "pvc://rows/a.jsonl"}, "validation": {"uri": "pvc://shared/v.jsonl"}}
    model = {"uri": "hf://org/name", "cache": {"claimName": "cache"}}
    evaluation = {"benchmarks": [{"name": "cards", "uri": "pvc://marks/b.jsonl", "metric": "accuracy"}]}
    pod = pod_of(build(data=data, model=model, storage={"uri": "pvc://shared/runs"}, evaluation=evaluation))
    mounts = {m["mountPath"]: m for m in pod["containers"][0]["volumeMounts"]}
    claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    assert {path: claims[m["name"]] for path, m in mounts.items() if m["name"] in claims} == {
        f"{names.CLAIMS_DIR}/rows": "rows",
        f"{names.CLAIMS_DIR}/marks": "marks",
        f"{names.CLAIMS_DIR}/shared": "shared",
        names.MODEL_CACHE_DIR: "cache",
    }
    assert mounts[f"{names.CLAIMS_DIR}/rows"]["readOnly"] is True
    assert "readOnly" not in mounts[f"{names.CLAIMS_DIR}/shared"]
    assert "readOnly" not in mounts[names.MODEL_CACHE_DIR]


def test_a_second_place_brings_its_secret_or_a_claim_that_is_written_to() -> None:
    hub = {"publish": {"uri": "hf://org/name", "secretRef": {"name": "hub"}}}
    container = pod_of(build(outputs=hub))["containers"][0]
    assert {"prefix": "OLIVINE_PUBLISH_", "secretRef": {"name": "hub"}} in container["envFrom"]
    container = pod_of(build(model={"uri": "pvc://out/m"}, outputs={"publish": {"uri": "pvc://out/tuned"}}))["containers"][0]
    (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == f"{names.CLAIMS_DIR}/out"]
    assert "readOnly" not in mount


def test_kueues_annotations_go_with_the_child_and_its_pods_where_it_looks_for_topology() -> None:
    view = replace(job(), annotations={"kueue.x-k8s.io/job-min-parallelism": "1"})
    made = build_child(view, parse_spec(SPEC), "CA", SETTINGS)
    assert made.job["metadata"]["annotations"]["kueue.x-k8s.io/job-min-parallelism"] == "1"
    assert made.job["spec"]["template"]["metadata"]["annotations"] == {"kueue.x-k8s.io/job-min-parallelism": "1"}


def test_code_of_the_users_is_mounted_where_the_trainer_looks_and_missing_code_holds_up_no_pod() -> None:
    loss = {"name": "own", "configMap": "losses", "key": "own.py", "class": "Own"}
    pod = pod_of(build(training={"maxSteps": 1, "loss": loss}))
    volume = next(v for v in pod["volumes"] if v.get("configMap", {}).get("name") == "losses")
    assert volume["configMap"] == {"name": "losses", "items": [{"key": "own.py", "path": "own.py"}], "optional": True}
    mount = next(m for m in pod["containers"][0]["volumeMounts"] if m["name"] == volume["name"])
    assert mount == {"name": volume["name"], "mountPath": f"{names.PLUGINS_DIR}/losses", "readOnly": True}
