"""The report: one HTML file that opens from disk, with its style, its script and its compressed samples inside."""
