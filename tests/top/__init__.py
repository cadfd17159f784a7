"""Mirrors torchfab/top."""
