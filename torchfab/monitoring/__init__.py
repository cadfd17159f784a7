"""Follow a job to its end: logs, stall alarm, load of its hosts, stack dumps."""
