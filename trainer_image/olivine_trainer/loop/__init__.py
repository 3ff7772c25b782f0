"""The verb `train`, from claiming the run to publishing the adapter."""
