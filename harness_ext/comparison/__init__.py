"""Runs against a baseline: measured, paired, tested, decided."""
