"""Documents, tasks, prompt rendering and the protocol fingerprint."""
