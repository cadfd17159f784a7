"""A job on a node: start, supervise, logs, status, stop. Standard library only."""
