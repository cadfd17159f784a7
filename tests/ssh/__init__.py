"""Mirrors torchfab/ssh."""
