"""Mirrors torchfab/records."""
