"""The embedded cluster: a real, one-node Kubernetes for development and tests, built from package registries."""
