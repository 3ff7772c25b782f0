"""What every rank imports, imported once: the ranks of the tests are forked from a process that has run this module."""

import os
from importlib import import_module

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from olivine_trainer.modeling.imports import import_training_stack

import_training_stack()
# QLoRA's ranks would import it each; those of the other methods do not look at it.
for name in ("bitsandbytes", "olivine_trainer.cli.worker", "olivine_trainer.loop.train", "tests.unit.trainer.faulty"):
    import_module(name)
