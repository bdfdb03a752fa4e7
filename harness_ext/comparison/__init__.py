"""Comparing runs with a baseline: measure, pair, test, decide, then rows with findings."""
