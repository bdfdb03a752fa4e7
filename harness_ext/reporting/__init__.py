"""What a report holds: a comparison, diagnoses, figures of each task, samples and provenance, as plain data."""
