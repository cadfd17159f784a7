"""Pods of a running job: the connection to their cluster, how they are, their logs, what is kept of them.

Only `api` imports the official client; `torchfab.runtimes.kubernetes.runtime` puts the pieces together.
"""
