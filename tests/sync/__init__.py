"""Mirrors torchfab/sync."""
