"""Where prompts come from: documents, tasks, rendering, fingerprint."""
