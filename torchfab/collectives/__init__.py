"""Collectives of all ranks, aligned: which rank is in which call, and which one the others wait for. Pure."""
