"""What `harness-ext check` verifies, one idea a module: source, settings, documents, templates, tokens, dry score."""
