"""Mirrors torchfab/profiling."""
