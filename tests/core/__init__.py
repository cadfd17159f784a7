"""Mirrors torchfab/core."""
