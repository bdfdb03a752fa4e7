"""Models: where they come from, adapters, prefix trees."""
