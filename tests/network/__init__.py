"""Mirrors torchfab/network."""
