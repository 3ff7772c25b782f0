//go:build tools

// Names the commands that are built from this module, so that `go mod tidy` keeps what they need.
package main

import (
	_ "k8s.io/kubernetes/cmd/kube-proxy"
	_ "k8s.io/kubernetes/cmd/kubelet"
)
