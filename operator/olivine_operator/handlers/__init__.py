"""What feeds the reconciler: kopf's watches, periodic listings, and the process that ties all parts together."""
