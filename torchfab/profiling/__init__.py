"""Profiles of all ranks: one merged trace, and where the time goes; pure, apart from reading and writing files.

`intervals` unions and differences, `trace` the trace of one rank, `calls` the numbers of its collectives, `merge` one
file of all ranks, `summary` shares of the time and who came last, `report` how it is printed.
"""
