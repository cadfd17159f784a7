"""Mirrors torchfab/cli."""
