"""Align the collectives of all ranks to find the call of each rank, and the rank that others wait for. Pure."""
