"""The manifest of a job on Kubernetes: values of flags, objects, their YAML text, and the program in the pods. Pure."""
