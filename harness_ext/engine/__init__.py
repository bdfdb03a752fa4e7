"""Evaluation of a base and its adapters."""
