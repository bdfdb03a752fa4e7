"""Planted defects: what a doctor has to find, made by three trainers on a tiny model, or written into a log."""
