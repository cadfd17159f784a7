"""What a job is on Kubernetes: values of flags, objects, their text, and the program in the pods. All pure."""
