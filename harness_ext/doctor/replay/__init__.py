"""Proof by intervention: the same model is asked the same documents again with one thing changed."""
