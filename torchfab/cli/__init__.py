"""How `fab` runs our tasks: Fabric's executor, flags as dataclasses, errors without tracebacks."""
