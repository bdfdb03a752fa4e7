"""What makes an unmodified model faster on a CPU; everything that is private to torch."""
