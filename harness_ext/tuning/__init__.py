"""Tournaments of trainings: several recipes or seeds, successive halving, one adapter."""
