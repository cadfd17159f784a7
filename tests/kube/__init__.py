"""A Kubernetes cluster for tests: an API server that speaks HTTP, and a kubelet whose pods are processes."""
