"""Reading results: files, runs and per-document scores of lm-eval and other tools, and what may be compared."""
