"""Mirrors torchfab/stacks."""
