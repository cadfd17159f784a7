"""Mirrors torchfab/monitoring."""
