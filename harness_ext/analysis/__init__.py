"""What results mean: reading, statistics, comparison."""
