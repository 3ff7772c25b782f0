"""`python -m olivine_trainer.data.row_worker`: makes examples for the process at the other end of its pipes, until its input ends.

A RowMaker is what the rows that follow are made with; (method of it, arguments of several calls) is answered by a list, or by None where
one of them failed.
"""

import importlib
import os
import pickle
import signal
import sys


def main() -> None:
    """Until the end of the input."""
    # A signal to the whole group is for the training process to answer; this one ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a model's own code prints is no answer
    _import()
    questions = sys.stdin.buffer
    try:
        maker = None
        while True:
            question = pickle.load(questions)  # (of our own process)
            if not isinstance(question, tuple):
                maker = question
                continue
            make, given = question
            try:
                made = [make(maker, *one) for one in given]
            except Exception:  # noqa: BLE001  (done again by who asked, where it can be understood)
                made = None
            pickle.dump(made, answers)
            answers.flush()
    except (EOFError, BrokenPipeError):
        return


def _import() -> None:
    """What takes long, before it is asked for; and where the code of a model's own tokenizer lies."""
    importlib.import_module("olivine_trainer.data.maker")
    importlib.import_module("transformers.dynamic_module_utils").init_hf_modules()


if __name__ == "__main__":
    main()
