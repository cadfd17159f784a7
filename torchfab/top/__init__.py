"""What the hosts do, live: one connection to each, kept, and what it tells."""
