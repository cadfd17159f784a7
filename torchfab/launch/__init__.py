"""A launch: ask the nodes, plan, start, record."""
