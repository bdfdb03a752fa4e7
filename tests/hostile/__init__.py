"""Hostile and damaged input for every reader: `run.py` draws cases, `seeds.jsonl` keeps those that found something."""
