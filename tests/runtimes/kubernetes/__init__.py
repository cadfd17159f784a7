"""Mirrors torchfab/runtimes/kubernetes."""
