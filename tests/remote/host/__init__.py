"""Mirrors torchfab/remote/host."""
