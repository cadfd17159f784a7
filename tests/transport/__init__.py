"""Mirrors torchfab/transport."""
