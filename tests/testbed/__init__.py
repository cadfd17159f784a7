"""Mirrors testbed."""
