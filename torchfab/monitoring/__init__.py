"""Follow a job to its end: logs, hang alarm, load of its hosts, stack dumps."""
