"""Mirrors torchfab/remote/stacks."""
