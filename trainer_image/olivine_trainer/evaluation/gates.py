"""Gates: what the tuned model must reach to be published. A function of numbers alone."""

from collections.abc import Mapping, Sequence

from olivine_api.evaluation import Gate
from olivine_trainer.evaluation.keys import camel


def unmet_gates(
    gates: Sequence[Gate], tuned: Mapping[str, float], base: Mapping[str, float], measured: Mapping[str, bool]
) -> list[str]:
    """A sentence for each bound that does not hold, with the numbers; a value that is no number meets nothing."""
    unmet: list[str] = []
    for gate in gates:
        if gate.metric is None:
            continue
        key = camel(gate.metric)
        value = tuned.get(key)
        if value is None:
            unmet.append(f"{key} is not a number")
            continue
        if gate.min is not None and not value >= gate.min:
            unmet.append(f"{key} is {value:.6g}, not at least {gate.min:.6g}")
        if gate.max is not None and not value <= gate.max:
            unmet.append(f"{key} is {value:.6g}, not at most {gate.max:.6g}")
        if gate.improves_on_base and not _improves(value, base.get(key), lower=measured[key]):
            before = base.get(key)
            of_base = "not a number" if before is None else f"{before:.6g}"
            unmet.append(f"{key} is {value:.6g}, not {'lower' if measured[key] else 'higher'} than the base model's {of_base}")
    return unmet


def _improves(value: float, base: float | None, *, lower: bool) -> bool:
    """A base that gave no number is improved on by any."""
    if base is None:
        return True
    return value < base if lower else value > base
