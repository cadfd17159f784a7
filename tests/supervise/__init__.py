"""Mirrors torchfab/supervise."""
