"""Values and pure functions that every other package may use: job specs, inventory, status, errors."""
