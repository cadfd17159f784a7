"""Modules of bench/launch.py: many hosts on one machine, the compared tools, measurements and tables."""
