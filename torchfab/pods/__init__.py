"""Kubernetes in pieces: what flags say, the manifest, the connection, how pods are, their logs.

Only `api` imports the official client; `torchfab.runtimes.kubernetes` puts the pieces together.
"""
