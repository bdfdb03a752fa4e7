"""What lm-eval wrote: files, runs, samples, and which of them may be compared."""
