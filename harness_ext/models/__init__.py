"""Models: where they come from, and the adapters on them."""
