"""A launch: prepare the nodes, plan, start, record."""
