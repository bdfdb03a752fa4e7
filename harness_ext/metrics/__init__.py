"""Pure metric functions: no I/O, no torch."""
