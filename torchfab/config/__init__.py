"""Validation of the `torchfab` section of Fabric's configuration, and the connection settings."""
