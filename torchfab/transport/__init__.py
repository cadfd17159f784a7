"""Sessions with nodes over SSH or a local process, and the fan-out over many of them."""
