"""`harness-ext check`, one subject per module: the YAML, settings, documents, templates, tokens, leaks, dry score."""
