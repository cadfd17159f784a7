"""A job on a node: prepare, start, supervise, status, logs, stop. Standard library only."""
