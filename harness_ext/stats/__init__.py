"""Intervals, paired tests, ranks and power on plain arrays; imports no other part of this package."""
