"""Tests against real programs on a rehearsal cluster."""
