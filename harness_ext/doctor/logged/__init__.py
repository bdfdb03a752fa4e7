"""Findings from logged samples alone: one module for each question, the cheapest first; no model is loaded."""
