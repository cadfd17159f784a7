"""Mirrors torchfab/remote/job."""
