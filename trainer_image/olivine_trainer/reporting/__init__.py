"""What the outside learns: log lines, the snapshot and its POSTs, metrics files, TensorBoard, the termination message."""
