"""Mirrors torchfab/runtimes/slurm."""
