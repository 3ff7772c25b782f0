"""`python -m olivine_trainer`."""

import sys

from olivine_trainer.early_signals import EARLY

if __name__ == "__main__":
    if "worker" not in sys.argv[1:3]:  # workers, a bundle's too, have handlers of their own
        EARLY.install()  # before the imports below, which take a second

    from olivine_trainer.cli import main

    sys.exit(main())
