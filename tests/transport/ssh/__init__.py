"""Mirrors torchfab/transport/ssh."""
