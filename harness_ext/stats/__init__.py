"""Intervals, paired tests, ranks and power on plain arrays; imports nothing else of this package."""
