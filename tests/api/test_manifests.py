"""Right and wrong manifests: the API server's CEL and the models agree on each of them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from olivine_api import names
from olivine_api.adapterbundle import parse_bundle
from olivine_api.finetunejob import parse_spec
from tests.api.jobs import SPEC, Namespace, manifest
from tests.api.kube import BUNDLES, FTJ, Json, Kube

pytestmark = pytest.mark.usefixtures("operator")

MERGE = "application/merge-patch+json"
STORED = Path(__file__).parent.parent / "fixtures" / "stored"

# What is changed in a right spec (None takes a member out), and what the refusal says.
WRONG: dict[str, tuple[Json, str]] = {
    "unknown field": ({"trainig": {}}, "trainig"),
    "no task": ({"task": None}, "task"),
    "unknown task": ({"task": "Poetry"}, "Poetry"),
    "no such loss": ({"training.loss": {"name": "huber"}}, "write cross_entropy, label_smoothing or focal"),
    "pairs without a loss for them": (
        {"task": "Generation", "data.template": {"pair": {"left": "{a}", "right": "{b}", "label": "c"}}},
        "data.template.pair needs a loss over pairs",
    ),
    "perplexity of one's own loss": (
        {
            "training.loss": {"name": "own", "configMap": "losses", "key": "losses.py", "class": "Own"},
            "evaluation.metrics": [{"name": "perplexity"}],
        },
        "metric perplexity needs a built-in loss",
    ),
    # where things are
    "foreign scheme": ({"model.uri": "ftp://host/model"}, "other schemes are not served"),
    "path that goes up": ({"data.train.uri": "s3://data/../other/rows.jsonl"}, r"without empty, \. or \.\. parts"),
    "model inside a repository": ({"model.uri": "hf://org/name/weights"}, "must be hf://org/name, without a path"),
    "model without an organisation": ({"model.uri": "hf://name"}, "uri must be hf://org/name"),
    "revision of a bucket": ({"model.revision": "main"}, "model.revision is for hf:// models"),
    "storage on the hub": ({"storage.uri": "hf://org/runs"}, "storage.uri cannot be on the hub"),
    "secret beside a claim": (
        {"data.train": {"uri": "pvc://rows/train.jsonl", "secretRef": {"name": "x"}}},
        "mean nothing beside pvc://",
    ),
    "endpoint with a path": ({"storage.endpoint": "https://store/path"}, "endpoint must be the store's URL without a path"),
    "split of no grammar": ({"data.train.split": "train[:5"}, "split must be a name with an optional slice"),
    "secret with a wrong name": ({"storage.secretRef": {"name": "My_Secret"}}, "name"),
    # data
    "two forms of template": ({"data.template.text": "{a}"}, "exactly one form"),
    "no form of template": ({"data.template": {}}, "exactly one form"),
    "tools without messages": ({"data.template.tools": "functions"}, "data.template.tools goes with messages"),
    "prompt without completion": ({"data.template.completion": None}, "go together"),
    "validation and fraction": ({"data.validation": {"uri": "s3://data/more.jsonl"}}, "exclude each other"),
    "stratified without fraction": ({"data.validationFraction": None, "data.stratifyBy": "tone"}, "needs data.validationFraction"),
    "whole fraction": ({"data.validationFraction": 1.0}, "validationFraction"),
    "streaming and a fraction": ({"data.streaming": True}, "data.streaming excludes"),
    "unknown augmentation": ({"data.augmentation": [{"name": "typos", "probability": 0.1}]}, "augmentation"),
    "paraphrase of nothing": (
        {"data.augmentation": [{"name": "template_paraphrase", "probability": 0.1}]},
        "template_paraphrase needs templates",
    ),
    "augmented text": (
        {
            "task": "Generation",
            "data.template": {"text": "{a}"},
            "data.lossOn": "All",
            "data.augmentation": [{"name": "word_dropout", "probability": 0.1}],
        },
        "data.augmentation needs data.template.prompt",
    ),
    "streamed slice": (
        {"data.validationFraction": None, "data.streaming": True, "data.train.split": "train[:9]"},
        "must name whole splits",
    ),
    "streamed and dropped": (
        {"data.validationFraction": None, "data.streaming": True, "data.onOverflow": "Drop"},
        "write Fail or Truncate",
    ),
    "packed pairs": (
        {"task": "Generation", "data.template": {"pair": {"left": "{a}", "right": "{b}", "label": "c"}}, "data.packing": True},
        "data.packing is not for data.template.pair",
    ),
    "text with lossOn Completion": ({"task": "Generation", "data.template": {"text": "{a}"}}, "lossOn must be All"),
    # task and method
    "classification of texts": ({"data.template": {"text": "{a}"}, "data.lossOn": "All"}, "Classification needs"),
    "head without classes": ({"task": "Generation", "classification": {}}, "classification is for task Classification"),
    "labels without classes": ({"task": "Generation", "data.labels": {"field": "tone"}}, "data.labels is for task Classification"),
    "spans of a generation": (
        {"task": "Generation", "data.extraction": {"format": "Spans", "textField": "t", "spansField": "s"}},
        "data.extraction and task Extraction go together",
    ),
    "rank of zero": ({"method.lora.rank": 0}, "rank"),
    "lora of a full method": ({"method.type": "Full"}, "method.lora is for method.type LoRA and QLoRA"),
    "quantised LoRA": ({"method.quantization": {}}, "method.quantization is for method.type QLoRA"),
    "bottleneck of LoRA": ({"method.adapter": {}}, "method.adapter is for method.type Adapter"),
    "eight bits of nf4": (
        {"method.type": "QLoRA", "method.quantization": {"bits": 8}},
        "bits must be 4 with type nf4",
    ),
    # training and evaluation
    "neither steps nor epochs": ({"training.maxSteps": None}, "exactly one of maxSteps and epochs"),
    "steps and epochs": ({"training.epochs": 1}, "exactly one of maxSteps and epochs"),
    "warmup beyond the end": ({"training.warmupSteps": 11}, "must not exceed"),
    "learning rate of zero": ({"training.learningRate": 0}, "learningRate"),
    "batch of none": ({"training.batchSize": 0}, "batchSize"),
    "unknown scheduler": ({"training.scheduler": "cosin"}, "cosin"),
    "half a plug-in": ({"training.loss": {"name": "mine", "configMap": "losses"}}, "configMap, key and class go together"),
    "stopping without evaluations": ({"training.earlyStopping": {}}, "training.earlyStopping needs evaluation.everySteps"),
    "accuracy of texts": (
        {
            "task": "Generation",
            "data.template": {"text": "{a}"},
            "data.lossOn": "All",
            "evaluation.metrics": [{"name": "accuracy"}],
        },
        "evaluation.metrics other than perplexity need data.template.prompt",
    ),
    "metric that nobody knows": ({"evaluation.metrics": [{"name": "sacrebleu"}]}, "evaluation.metrics knows accuracy, perplexity"),
    "entities of a classification": ({"evaluation.metrics": [{"name": "seqeval"}]}, "write seqeval for task Extraction"),
    "extraction of chats": (
        {
            "task": "Extraction",
            "data.template": {"messages": "chat"},
            "data.extraction": {"format": "Spans", "textField": "t", "spansField": "s"},
        },
        "task Extraction needs",
    ),
    "own metric under a built-in's name": (
        {"evaluation.metrics": [{"name": "f1", "configMap": "metrics", "key": "own.py", "class": "Own"}]},
        "under the name of a built-in metric",
    ),
    "benchmark of an unknown metric": (
        {"evaluation.benchmarks": [{"name": "own", "uri": "s3://data/b.jsonl", "metric": "own"}]},
        "the metric of evaluation.benchmarks must be eval_loss",
    ),
    "benchmark nowhere": (
        {"evaluation.benchmarks": [{"name": "own", "uri": "b.jsonl", "metric": "accuracy"}]},
        "other schemes are not served",
    ),
    "summaries of texts": (
        {"task": "Summarization", "data.template": {"text": "{a}"}, "data.lossOn": "All"},
        "task Summarization needs",
    ),
    "stopping by the test rows": (
        {"training.earlyStopping": {"metric": "test_accuracy"}, "evaluation.everySteps": 5},
        "must be of the validation rows, not of data.test",
    ),
    "evaluation without rows": ({"data.validationFraction": None, "evaluation.everySteps": 5}, "no rows to evaluate on"),
    "metrics without rows": (
        {"data.validationFraction": None, "evaluation.metrics": [{"name": "perplexity"}]},
        "no rows to measure on",
    ),
    "a head without labels": ({"classification": {"head": "Sequence"}}, "classification.head Sequence needs data.labels"),
    "text of a head": (
        {
            "classification": {"head": "Sequence"},
            "data.labels": {"field": "tone"},
            "evaluation.metrics": [{"name": "bleu"}],
        },
        "a classification head generates none",
    ),
    "gate of nothing": ({"evaluation.gates": [{"metric": "accuracy"}]}, "either manual: true alone, or a metric"),
    "nothing published": ({"outputs": {"adapter": False}}, "outputs must have at least one of"),
    "a bottleneck merged": (
        {"method": {"type": "Adapter"}, "outputs": {"merged": True}},
        "write outputs.onnx, or method.type LoRA",
    ),
    "a classifier as a graph": (
        {"classification": {"head": "Sequence"}, "data.labels": {"field": "tone"}, "outputs": {"onnx": {}}},
        "outputs.onnx has no place for a classifier's head",
    ),
    "a graph that no builder makes": (
        {"outputs": {"onnx": {"precision": "fp32", "target": "cuda"}}},
        "onnx.precision is fp32 and onnx.target cuda or directml",
    ),
    "whole modules in a graph": (
        {"method.lora.modulesToSave": ["lm_head"], "outputs": {"onnx": {}}},
        "outputs.onnx has no place for modules that are trained whole",
    ),
    "a folder of a repository": (
        {"outputs": {"publish": {"uri": "hf://org/name/folder"}}},
        "publish.uri on the hub must be hf://org/name, without a path",
    ),
    "search beyond its trials": (
        {"search": {"trials": 2, "parallelism": 3, "space": {"training.seed": {"type": "choice", "values": [1]}}}},
        "search.parallelism must not exceed",
    ),
    "dimension without bounds": (
        {"search": {"trials": 2, "space": {"training.learningRate": {"type": "float", "low": 0.1}}}},
        "low <= high with type float or int",
    ),
    # pods
    "no pods": ({"pods": {"count": 0}}, "count"),
    "quantity of no unit": ({"pods": {"resources": {"limits": {"memory": "4GB"}}}}, "memory"),
    "quantity in words": ({"pods": {"resources": {"requests": {"cpu": "half"}}}}, "cpu"),
    "our variable": ({"pods": {"env": [{"name": "WORLD_SIZE", "value": "2"}]}}, "pods.env cannot set"),
    "value and source": (
        {"pods": {"env": [{"name": "A", "value": "b", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}},
        "value or valueFrom, not both",
    ),
    "mount of no volume": ({"pods": {"volumeMounts": [{"name": "x", "mountPath": "/x"}]}}, "that pods.volumes does not have"),
    "mount over ours": (
        {"pods": {"volumes": [{"name": "x", "emptyDir": {}}], "volumeMounts": [{"name": "x", "mountPath": "/tmp/x"}]}},
        "pods.volumeMounts cannot use",
    ),
    "volume of two kinds": (
        {"pods": {"volumes": [{"name": "x", "emptyDir": {}, "configMap": {"name": "c"}}]}},
        "exactly one of configMap, secret, emptyDir",
    ),
    "volume with our name": ({"pods": {"volumes": [{"name": "olivine-x", "emptyDir": {}}]}}, "cannot begin with olivine-"),
    "our label": ({"pods": {"labels": {"olivine.dev/job": "other"}}}, "pods.labels cannot set"),
    "deadline of nothing": ({"activeDeadlineSeconds": 0}, "activeDeadlineSeconds"),
}

# Fields of the contract that a later release serves: told by name.
UNSERVED: dict[str, Json] = {
    "training.sharing.mode": {"training.sharing": {"mode": "Auto"}},
    "evaluation.gates": {"evaluation.gates": [{"manual": True}]},
    "tracking.mlflow": {"tracking": {"mlflow": {"uri": "https://mlflow"}}},
    "search": {
        "search": {"trials": 2, "space": {"training.learningRate": {"type": "float", "low": 1e-6, "high": 1e-3, "log": True}}}
    },
    "reuse": {"reuse": "Adopt"},
}

RIGHT: dict[str, Json] = {
    "as it is": {},
    "text with lossOn All": {"task": "Generation", "data.template": {"text": "{a}"}, "data.lossOn": "All"},
    "messages": {"task": "Instruction", "data.template": {"messages": "chat"}},
    "messages with tools": {"task": "Instruction", "data.template": {"messages": "chat", "tools": "functions"}},
    "summaries": {"task": "Summarization", "evaluation.metrics": [{"name": "rouge"}, {"name": "bleu"}]},
    "entities": {
        "task": "Extraction",
        "data.extraction": {"format": "Spans", "textField": "t", "spansField": "s"},
        "evaluation.metrics": [{"name": "seqeval"}, {"name": "exact_match"}],
    },
    "gates": {"evaluation.gates": [{"metric": "accuracy", "min": 0.9}, {"metric": "eval_loss", "improvesOnBase": True}]},
    "rows to measure": {
        "data.test": {"uri": "s3://data/test.jsonl", "secretRef": {"name": "t"}},
        "evaluation.metrics": [
            {"name": "own", "configMap": "metrics", "key": "own.py", "class": "Own", "parameters": {"share": 0.5}},
            {"name": "accuracy"},
        ],
        "evaluation.benchmarks": [
            {"name": "cards", "uri": "s3://data/b.jsonl", "metric": "own"},
            {"name": "loans-2", "uri": "pvc://rows/b.jsonl", "metric": "eval_loss"},
        ],
    },
    "all metrics of answers": {
        "evaluation.metrics": [{"name": name} for name in ("accuracy", "exact_match", "f1", "macro_f1", "micro_f1", "perplexity")]
    },
    "rows augmented": {
        "data.augmentation": [
            {"name": "word_dropout", "probability": 0.1, "parameters": {"share": 0.2}},
            {"name": "case_noise", "probability": 0.1, "parameters": {"style": "upper"}},
            {"name": "template_paraphrase", "probability": 0.5, "templates": ["{phrase}: which tone?"]},
        ]
    },
    "rows streamed": {"data.validationFraction": None, "data.streaming": True, "data.clean": {"deduplicate": False}},
    "rows packed": {"data.packing": True},
    "rows made by other processes": {"training.dataLoaderWorkers": 2},
    "metrics of test rows alone": {
        "data.validationFraction": None,
        "data.test": {"uri": "s3://data/test.jsonl"},
        "evaluation.metrics": [{"name": "accuracy"}],
    },
    "rows cleaned": {"data.clean": {"deduplicate": True, "dropEmpty": False}},
    "labels by name": {"data.labels": {"field": "tone", "names": ["warm", "cold"]}},
    "epochs": {"training.maxSteps": None, "training.epochs": 0.5},
    "a validation file": {
        "data.validationFraction": None,
        "data.validation": {"uri": "s3://data/v.csv", "secretRef": {"name": "v"}},
    },
    "files": {"model.uri": "file:///models/tiny"},
    "the hub": {
        "model": {
            "uri": "hf://org/name",
            "revision": "main",
            "cache": {"claimName": "models"},
            "allowedLicenses": ["apache-2.0", "mit"],
            "secretRef": {"name": "hub"},
            "endpoint": "https://mirror.example",
        },
        "data.train": {"uri": "hf://org/rows", "split": "train[:4096]+extra[10%:20%]"},
    },
    "claims": {"model.uri": "pvc://models/tiny", "data.train.uri": "pvc://rows/train.jsonl", "storage.uri": "pvc://runs"},
    "other clouds": {
        "model.uri": "gs://models/tiny",
        "data.train.uri": "az://rows/train.parquet",
        "storage.uri": "az://runs/olivine",
    },
    "cancelled while suspended": {"suspend": True, "cancel": True},
    "early stopping": {"training.earlyStopping": {"metric": "accuracy", "mode": "max"}, "evaluation.everySteps": 5},
    "another optimizer": {"training.optimizer": "adamw_8bit"},
    "a built-in loss": {"training.loss": {"name": "focal", "parameters": {"gamma": 2}}},
    "a loss of one's own over pairs": {
        "task": "Generation",
        "data.template": {"pair": {"left": "{a}", "right": "{b}", "label": "c"}},
        "training.loss": {"name": "own", "configMap": "losses", "key": "losses.py", "class": "Own", "parameters": {"margin": 1}},
    },
    "scheduler parameters": {"training.schedulerParameters": {"num_cycles": 2}, "training.scheduler": "cosine_with_restarts"},
    "all outputs": {
        "outputs": {
            "merged": True,
            "onnx": {"precision": "int4", "target": "cpu"},
            "publish": {"uri": "hf://org/name", "secretRef": {"name": "hub"}, "endpoint": "https://mirror.example"},
        }
    },
    "a graph for a device": {"outputs": {"onnx": {"precision": "fp16", "target": "cuda"}}},
    "a whole model as a graph alone": {"method": {"type": "Full"}, "outputs": {"adapter": False, "onnx": {}}},
    "a merged classifier": {
        "classification": {"head": "Sequence"},
        "data.labels": {"field": "tone"},
        "outputs": {"adapter": False, "merged": True},
    },
    "defaults said aloud": {
        "classification": {"head": "Generative"},
        "outputs": {"adapter": True},
        "reuse": "Never",
        "training.loss": {"name": "cross_entropy"},
        "training.optimizer": "adamw_torch",
        "training.sharing": {"mode": "Never"},
        "data.augmentation": [],
        "evaluation.gates": [],
        "method.lora.modulesToSave": [],
    },
    "a classification head": {"classification": {"head": "Sequence"}, "data.labels": {"field": "tone", "names": ["warm", "cold"]}},
    "the whole model": {"method": {"type": "Full"}},
    "a quantised base": {"method": {"type": "QLoRA", "quantization": {"bits": 4, "type": "nf4", "doubleQuantization": True}}},
    "bottleneck adapters": {"method": {"type": "Adapter", "adapter": {"bottleneck": 8, "placement": "Pfeiffer"}}},
    "modules trained whole": {"method.lora.targetModules": ["c_attn", "c_proj"], "method.lora.modulesToSave": ["ln_f", "lm_head"]},
    "deadlines": {"activeDeadlineSeconds": 3600, "queueDeadlineSeconds": 600, "ttlSecondsAfterFinished": 0},
    "everything about pods": {
        "pods": {
            "count": 2,
            "processesPerPod": 4,
            "resources": {"limits": {"cpu": 1, "memory": "2Gi"}},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "env": [
                {"name": "A", "value": "b"},
                {"name": "C"},
                {"name": "D", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "d"}}},
            ],
            "envFrom": [{"prefix": "WANDB_", "secretRef": {"name": "wandb"}}],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["h100"]}]}]
                    }
                },
                "podAntiAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 10, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}}
                    ]
                },
            },
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
            "runtimeClassName": "nvidia",
            "schedulerName": "default-scheduler",
            "volumes": [
                {"name": "rows", "persistentVolumeClaim": {"claimName": "rows", "readOnly": True}},
                {"name": "cache", "emptyDir": {"sizeLimit": "1Gi"}},
                {"name": "cert", "secret": {"secretName": "cert", "items": [{"key": "a", "path": "b"}]}},
            ],
            "volumeMounts": [{"name": "rows", "mountPath": "/rows", "readOnly": True}],
            "sharedMemory": "1Gi",
            "labels": {"app.kubernetes.io/part-of": "tones", "cost-center": "42"},
            "annotations": {"prometheus.io/scrape": "false"},
            "imagePullSecrets": [{"name": "registry"}],
            "terminationGracePeriodSeconds": 600,
        }
    },
}

_STORAGE = {"storage": {"uri": "s3://olivine/runs"}}
WRONG_BUNDLES: dict[str, tuple[Json, str]] = {
    "empty": ({}, "adapters or selector"),
    "job and uri": (
        {"adapters": [{"name": "a", "jobRef": {"name": "j"}, "uri": "s3://x/y"}]},
        "exactly one of jobRef and uri",
    ),
    "two of a name": (
        {"adapters": [{"name": "a", "jobRef": {"name": "j"}}, {"name": "a", "jobRef": {"name": "k"}}]},
        "have the same name",
    ),
    "named base": ({"adapters": [{"name": "base", "jobRef": {"name": "j"}}]}, "cannot be named base"),
    "uri without a base": ({"adapters": [{"name": "a", "uri": "s3://x/y"}]}, "model is needed"),
    "a graph that nobody makes": (
        {"adapters": [{"name": "a", "jobRef": {"name": "j"}}], "onnx": {"precision": "fp32", "target": "cuda"}},
        "makes no graph: write fp16",
    ),
    "an adapter nowhere": (
        {"model": {"uri": "s3://m/x"}, "adapters": [{"name": "a", "uri": "ftp://x/y"}]},
        "uri must be hf://org/name",
    ),
    "two pods": ({"adapters": [{"name": "a", "jobRef": {"name": "j"}}], "pods": {"count": 2}}, "one pod with one process"),
    "a selector of nodes": (
        {"selector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}},
        "In, NotIn, Exists and DoesNotExist",
    ),
    "published into a folder of a hub": (
        {"adapters": [{"name": "a", "jobRef": {"name": "j"}}], "publish": {"uri": "hf://org/name/folder"}},
        "hf://org/name, without a path",
    ),
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


def test_there_are_wrong_manifests_enough() -> None:
    assert len(WRONG) + len(UNSERVED) + len(WRONG_BUNDLES) >= 40


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_manifest_is_refused_with_a_sentence_by_both(kube: Kube, case: str) -> None:
    changes, told = WRONG[case]
    code, message = dry_run(kube, changed(changes))
    assert code in (400, 422), message
    assert told.replace("\\", "") in message
    with pytest.raises(ValidationError, match=told):
        parse_spec(changed(changes))


@pytest.mark.parametrize("field", UNSERVED)
def test_what_is_not_served_yet_is_refused_by_name(kube: Kube, field: str) -> None:
    spec = changed(UNSERVED[field])
    code, message = dry_run(kube, spec)
    assert code == 422, message
    assert "is not served by this release" in message or "are not served by this release" in message
    assert field in message
    with pytest.raises(ValidationError, match="not served by this release"):
        parse_spec(spec)


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_manifest_is_accepted_by_both(kube: Kube, case: str) -> None:
    code, message = dry_run(kube, changed(RIGHT[case]))
    assert code == 201, message
    parse_spec(changed(RIGHT[case]))


@pytest.mark.parametrize("case", WRONG_BUNDLES)
def test_a_wrong_bundle_is_refused_with_a_sentence_by_both(kube: Kube, case: str) -> None:
    changes, told = WRONG_BUNDLES[case]
    body: Json = {
        "apiVersion": names.API_VERSION,
        "kind": names.ADAPTERBUNDLE_KIND,
        "metadata": {"name": "some-bundle"},
        "spec": _STORAGE | changes,
    }
    answer = kube.request("POST", f"{BUNDLES.format(ns='default')}?dryRun=All&fieldValidation=Strict", body)
    assert answer.code == 422, answer.message
    assert told in answer.message
    with pytest.raises(ValidationError, match=told):
        parse_bundle(body["spec"])


@pytest.mark.parametrize("name", ["9lives", "Upper", "a" * 41, "ends-with-"])
def test_a_wrong_name_is_refused(kube: Kube, name: str) -> None:
    code, _ = dry_run(kube, SPEC, name)
    assert code == 422


def test_defaults_of_the_crd_are_those_of_the_models(kube: Kube) -> None:
    answer = kube.must("POST", f"{FTJ.format(ns='default')}?dryRun=All", manifest("some-job", "default"))
    assert parse_spec(answer["spec"]) == parse_spec(SPEC)
    assert parse_spec(answer["spec"]).to_json_dict() == answer["spec"]


# What a user may change once the child exists, and what the refusal of the rest says.
CHANGES: dict[str, tuple[Json, str | None]] = {
    "deadline": ({"activeDeadlineSeconds": 60}, None),
    "time to live": ({"ttlSecondsAfterFinished": 60}, None),
    "retries": ({"retries": {"maxRestarts": 1}}, None),
    "learning rate": ({"training": {"learningRate": 0.5}}, "the spec is fixed once its training child exists"),
    "a new part": ({"classification": {"head": "Generative"}}, "the spec is fixed once its training child exists"),
    "image": ({"pods": {"image": "other:1"}}, "spec.pods is fixed once the training child exists"),
    "count": ({"pods": {"count": 2}}, "only while the job is suspended"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_the_spec_is_fixed_once_the_child_exists(kube: Kube, ns: Namespace, case: str) -> None:
    ns.apply("fixed")
    ns.wait_job("fixed")
    change, told = CHANGES[case]
    answer = kube.request("PATCH", f"{ns.path(FTJ, 'fixed')}?dryRun=All", {"spec": change}, MERGE)
    if told is None:
        assert answer.ok, answer.message
    else:
        assert answer.code == 422
        assert told in answer.message
        assert "suspend" in answer.message or "kubectl replace --force" in answer.message


def test_pods_may_be_changed_while_suspended(kube: Kube, ns: Namespace) -> None:
    ns.apply("elastic")
    ns.wait_job("elastic")
    path = f"{ns.path(FTJ, 'elastic')}"
    kube.must("PATCH", path, {"spec": {"suspend": True}}, MERGE)
    answer = kube.request("PATCH", path, {"spec": {"pods": {"count": 2, "resources": {"limits": {"cpu": "1"}}}}}, MERGE)
    assert answer.ok, answer.message


@pytest.mark.parametrize("file", sorted(STORED.glob("*.json")), ids=lambda file: file.stem)
def test_an_object_of_an_older_release_is_still_understood(kube: Kube, ns: Namespace, file: Path) -> None:
    """v1alpha1 only grows: what an older release stored is accepted, unchanged, and read by today's models."""
    stored = json.loads(file.read_text())
    fresh = {key: stored[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": "old-one"}}
    fresh["spec"] |= {"suspend": True}  # nothing is to be started
    created = kube.must("POST", f"{ns.path(FTJ)}?fieldValidation=Strict", fresh)
    assert _holds(created["spec"], fresh["spec"])
    parse_spec(stored["spec"])
    path = f"{ns.path(FTJ, 'old-one', 'status')}?dryRun=All&fieldValidation=Strict"
    answer = kube.request("PATCH", path, {"status": stored["status"]}, MERGE)
    assert answer.ok, answer.message
    assert _holds(answer.body["status"], stored["status"])


def _holds(new: Any, old: Any) -> bool:
    """Whether everything in `old` is in `new`, unchanged; defaults may have come."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and _holds(new[key], value) for key, value in old.items())
    return new == old
