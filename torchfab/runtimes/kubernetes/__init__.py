"""The Kubernetes runtime: cluster client, pod status, log streams, and the archive of jobs whose objects are deleted.

Only `client` imports the official Kubernetes client. `runtime` combines the modules.
"""
