"""Right and wrong manifests: the API server's CEL and the models agree on each of them."""

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from olivine_api.finetunejob import parse_spec
from tests.api.jobs import SPEC, manifest
from tests.api.kube import FTJ, Json, Kube
from tests.api.operator_process import OperatorProcess

pytestmark = pytest.mark.usefixtures("operator")

_TEXT = {"template": {"text": "{a}"}, "validationFraction": None}

# What is changed in a right spec (None takes a member out), and what the refusal says.
WRONG: dict[str, tuple[Json, str]] = {
    "unknown field": ({"trainig": {}}, "trainig"),
    "no task": ({"task": None}, "task"),
    "unknown task": ({"task": "Poetry"}, "Poetry"),
    "foreign scheme": ({"model.uri": "ftp://host/model"}, "other schemes are not served"),
    "two forms of template": ({"data.template.text": "{a}"}, "exactly one form"),
    "no form of template": ({"data.template": {}}, "exactly one form"),
    "prompt without completion": ({"data.template.completion": None}, "go together"),
    "validation and fraction": ({"data.validation": {"uri": "s3://data/more.jsonl"}}, "exclude each other"),
    "stratified without fraction": ({"data.validationFraction": None, "data.stratifyBy": "tone"}, "needs data.validationFraction"),
    "whole fraction": ({"data.validationFraction": 1.0}, "validationFraction"),
    "text with lossOn Completion": ({"task": "Generation", "data.template": {"text": "{a}"}}, "lossOn must be All"),
    "classification of texts": ({"data.template": {"text": "{a}"}, "data.lossOn": "All"}, "Classification needs"),
    "neither steps nor epochs": ({"training.maxSteps": None}, "exactly one of maxSteps and epochs"),
    "steps and epochs": ({"training.epochs": 1}, "exactly one of maxSteps and epochs"),
    "warmup beyond the end": ({"training.warmupSteps": 11}, "must not exceed"),
    "learning rate of zero": ({"training.learningRate": 0}, "learningRate"),
    "batch of none": ({"training.batchSize": 0}, "batchSize"),
    "accuracy of texts": (
        {
            "task": "Generation",
            "data.template": {"text": "{a}"},
            "data.lossOn": "All",
            "evaluation.metrics": [{"name": "accuracy"}],
        },
        "metric accuracy needs",
    ),
    "evaluation without rows": ({"data.validationFraction": None, "evaluation.everySteps": 5}, "no rows to evaluate on"),
    "metrics without rows": (
        {"data.validationFraction": None, "evaluation.metrics": [{"name": "perplexity"}]},
        "no rows to measure on",
    ),
    "rank of zero": ({"method.lora.rank": 0}, "rank"),
    "secret with a wrong name": ({"storage.secretRef": {"name": "My_Secret"}}, "name"),
}

RIGHT: dict[str, Json] = {
    "as it is": {},
    "text with lossOn All": {"task": "Generation", "data.template": {"text": "{a}"}, "data.lossOn": "All"},
    "messages": {"task": "Instruction", "data.template": {"messages": "chat"}},
    "epochs": {"training.maxSteps": None, "training.epochs": 0.5},
    "a validation file": {
        "data.validationFraction": None,
        "data.validation": {"uri": "s3://data/v.csv", "secretRef": {"name": "v"}},
    },
    "files": {"model.uri": "file:///models/tiny"},
    "cancelled while suspended": {"suspend": True, "cancel": True},
    "scheduler parameters": {"training.schedulerParameters": {"num_cycles": 2}, "training.scheduler": "cosine_with_restarts"},
    "everything about pods": {
        "pods": {
            "resources": {"limits": {"cpu": 1, "memory": "2Gi"}},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "env": [{"name": "A", "value": "b"}],
        }
    },
}


def changed(changes: Json) -> Json:
    spec = copy.deepcopy(SPEC)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place: Any = spec
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            place.pop(last)
        else:
            place[last] = value
    return spec


def dry_run(kube: Kube, spec: Json, name: str = "some-job") -> tuple[int, str]:
    body = manifest(name, "default") | {"spec": spec}
    answer = kube.request("POST", f"{FTJ.format(ns='default')}?dryRun=All&fieldValidation=Strict", body)
    return answer.code, answer.message


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_manifest_is_refused_with_a_sentence_by_both(kube: Kube, case: str) -> None:
    changes, sentence = WRONG[case]
    code, message = dry_run(kube, changed(changes))
    assert code in (400, 422), message
    assert sentence in message
    with pytest.raises(ValidationError, match=sentence):
        parse_spec(changed(changes))


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_manifest_is_accepted_by_both(kube: Kube, case: str) -> None:
    code, message = dry_run(kube, changed(RIGHT[case]))
    assert code == 201, message
    parse_spec(changed(RIGHT[case]))


@pytest.mark.parametrize("name", ["9lives", "Upper", "a" * 41, "ends-with-"])
def test_a_wrong_name_is_refused(kube: Kube, name: str) -> None:
    code, _ = dry_run(kube, SPEC, name)
    assert code == 422


def test_defaults_of_the_crd_are_those_of_the_models(kube: Kube, operator: OperatorProcess) -> None:
    answer = kube.must("POST", f"{FTJ.format(ns='default')}?dryRun=All", manifest("some-job", "default"))
    assert parse_spec(answer["spec"]) == parse_spec(SPEC)
    assert parse_spec(answer["spec"]).to_json_dict() == answer["spec"]
