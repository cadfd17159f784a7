"""Mirrors torchfab/launching."""
