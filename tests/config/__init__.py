"""Mirrors torchfab/config."""
