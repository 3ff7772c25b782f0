"""The user's own metric: a class from a ConfigMap, called with what was expected and what was answered."""

from collections.abc import Sequence

from olivine_api.reasons import Reason
from olivine_trainer.evaluation.keys import camel
from olivine_trainer.evaluation.measures import Case, Measure
from olivine_trainer.plugins import OwnClass


def own_measure(name: str, own: OwnClass) -> Measure:
    """`class(**parameters)(expected, answers) -> number`, two lists of strings of the same length.

    Lower is better where the class says `lower_is_better = True`. Raises ConfigurationError where it cannot be made.
    """
    key = camel(name)
    made = own.make()
    if not callable(made):
        raise own.refused("has no __call__(self, expected, answers): it is given two lists of strings and returns a number")

    def compare(cases: Sequence[Case]) -> dict[str, float]:
        with own.blamed(f"failed over {len(cases)} answers"):
            value = made([case.expected for case in cases], [case.answer for case in cases])
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise own.refused(
                f"returned {type(value).__name__} {value!r:.80}: it must return one number (a float)", Reason.PLUGIN_FAILED
            )
        return {key: float(value)}

    return Measure((key,), compare, lower=(key,) if getattr(made, "lower_is_better", False) is True else ())
