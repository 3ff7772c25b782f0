"""Short trainings in real pods: the example's job on a tiny model, with everything random switched on and each step told in the log."""

from pathlib import Path
from typing import Any

from tests.support.cluster import example, renamed, s3
from tests.support.models import make_tiny_llama

TINY = "tests/tiny-llama-short"
TOTAL_STEPS, CHECKPOINT_STEPS, EVAL_STEPS = 200, 25, 80


def put_tiny_model(scratch: Path) -> None:
    """Put the model where `short_training` looks for it."""
    for file in make_tiny_llama(scratch).iterdir():
        s3("models").put(f"{TINY}/{file.name}", file.read_bytes())


def short_training(name: str, namespace: str, *, count: int = 1, **spec: Any) -> dict[str, Any]:
    """A FineTuneJob; `spec` replaces members, and adds to those of pods and storage. Two pods train the same effective batch as one."""
    made = renamed(example("phrase-tone.yaml"), name, namespace, model={"uri": f"s3://models/{TINY}"})
    whole = made["spec"]
    whole["method"]["lora"] |= {"dropout": 0.1, "targetModules": ["q_proj", "v_proj"]}
    whole["training"] |= {"maxSteps": TOTAL_STEPS, "gradientAccumulationSteps": 2, "batchSize": 4 // count, "loggingSteps": 1}
    whole["data"]["maxLength"] = 256  # its tokenizer has few words: most are spelled out
    whole["evaluation"] |= {"everySteps": EVAL_STEPS}
    whole["checkpoint"] = {"everySteps": CHECKPOINT_STEPS, "keep": 3, "keepAfterSuccess": 3}
    # One thread each, whatever the machine: the same thread count gives the same bytes.
    resources = {"limits": {"cpu": "1", "memory": "2Gi"}, "requests": {"cpu": "200m", "memory": "900Mi"}}
    whole["pods"] = {"resources": resources} | ({"count": count} if count > 1 else {})
    for member, value in spec.items():
        whole[member] = whole[member] | value if member in ("pods", "storage") else value
    return made
