"""Mirrors torchfab/remote/slurm."""
