"""Mirrors torchfab/launch."""
