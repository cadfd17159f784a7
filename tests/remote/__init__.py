"""Tests of the program that runs on a node."""
