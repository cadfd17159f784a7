"""The parts of bench/launch.py: many hosts on one machine, the tools that are compared, measuring, the tables."""
