"""Prefix trees: layout, masks, and one pass of a model over them."""
