"""Mirrors torchfab/launchers/manifest."""
