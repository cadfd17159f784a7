"""Mirrors torchfab/commands."""
